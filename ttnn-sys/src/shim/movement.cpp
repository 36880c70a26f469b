#include "ttnn-sys/src/shim/movement.hpp"

#include <array>
#include <vector>

#include <ttnn/operations/core/to_layout/to_layout_op.hpp>
#include <ttnn/operations/core/to_memory_config/to_memory_config_op.hpp>
#include <ttnn/operations/data_movement/concat/concat.hpp>
#include <ttnn/operations/data_movement/copy/copy.hpp>
#include <ttnn/operations/data_movement/pad/pad.hpp>
#include <ttnn/operations/data_movement/permute/permute.hpp>
#include <ttnn/operations/data_movement/reshape_view/reshape.hpp>
#include <ttnn/operations/data_movement/slice/slice.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {

std::unique_ptr<Tensor> concat(rust::Slice<const TensorRef> parts, std::int32_t dim) {
    std::vector<ttnn::Tensor> tensors;
    for (const auto& part : parts) {
        tensors.push_back(get(part.tensor));
    }
    return wrap(ttnn::concat(tensors, dim));
}

std::unique_ptr<Tensor> slice(
    const Tensor& x, rust::Slice<const std::uint32_t> begin, rust::Slice<const std::uint32_t> end) {
    using Indices = ttnn::SmallVector<std::uint32_t>;
    const Indices every_element(begin.size(), 1);
    return wrap(ttnn::slice(
        get(x), Indices(begin.begin(), begin.end()), Indices(end.begin(), end.end()), every_element));
}

std::unique_ptr<Tensor> reshape(const Tensor& x, rust::Slice<const std::uint32_t> shape) {
    return wrap(ttnn::reshape(get(x), to_shape(shape)));
}

std::unique_ptr<Tensor> permute(const Tensor& x, rust::Slice<const std::uint32_t> dims) {
    return wrap(ttnn::permute(get(x), ttnn::SmallVector<std::int64_t>(dims.begin(), dims.end())));
}

std::unique_ptr<Tensor> pad(const Tensor& x, rust::Slice<const Padding> padding, float value) {
    ttnn::SmallVector<std::array<std::uint32_t, 2>> amounts;
    for (const auto& dim : padding) {
        amounts.push_back({dim.before, dim.after});
    }
    constexpr bool multicore = true;
    return wrap(ttnn::pad(get(x), amounts, value, multicore));
}

std::unique_ptr<Tensor> to_layout(const Tensor& x, Layout layout) {
    return wrap(ttnn::to_layout(get(x), to_ttnn(layout)));
}

std::unique_ptr<Tensor> to_memory(const Tensor& x, const Memory& memory) {
    return wrap(ttnn::to_memory_config(get(x), to_ttnn(memory).value_or(ttnn::MemoryConfig{})));
}

void copy(const Tensor& from, const Tensor& into) { ttnn::copy(get(from), get(into)); }

}  // namespace ttnn_sys
