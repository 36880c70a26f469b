#include "ttnn-sys/src/shim/elementwise.hpp"

#include <vector>

#include <ttnn/operations/copy/typecast/typecast.hpp>
#include <ttnn/operations/eltwise/binary/binary.hpp>
#include <ttnn/operations/eltwise/unary/unary.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {
namespace {

using ttnn::operations::unary::EltwiseUnaryWithParam;
using Activations = std::vector<EltwiseUnaryWithParam>;

constexpr auto same_dtype = std::nullopt;
constexpr auto same_memory = std::nullopt;
constexpr auto new_output = std::nullopt;

Activations activations(Activation activation) {
    const auto fused = to_ttnn(activation);
    return fused ? Activations{EltwiseUnaryWithParam(*fused)} : Activations{};
}

}  // namespace

std::unique_ptr<Tensor> add(const Tensor& a, const Tensor& b, Activation on_output) {
    const auto fused = activations(on_output);
    return wrap(ttnn::add(get(a), get(b), same_dtype, same_memory, new_output, fused));
}

std::unique_ptr<Tensor> multiply(const Tensor& a, const Tensor& b, Activation on_a) {
    const auto fused = activations(on_a);
    const Activations none;
    return wrap(ttnn::multiply(get(a), get(b), same_dtype, same_memory, new_output, none, fused));
}

std::unique_ptr<Tensor> add_scalar(const Tensor& x, float value) { return wrap(ttnn::add(get(x), value)); }

std::unique_ptr<Tensor> multiply_scalar(const Tensor& x, float value) {
    return wrap(ttnn::multiply(get(x), value));
}

std::unique_ptr<Tensor> gelu(const Tensor& x) {
    constexpr bool lookup_table = false;
    return wrap(ttnn::gelu(get(x), lookup_table));
}

std::unique_ptr<Tensor> silu(const Tensor& x) { return wrap(ttnn::silu(get(x))); }

std::unique_ptr<Tensor> typecast(const Tensor& x, DataType dtype) {
    return wrap(ttnn::typecast(get(x), to_ttnn(dtype)));
}

}  // namespace ttnn_sys
