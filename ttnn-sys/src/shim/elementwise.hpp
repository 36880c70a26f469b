// Operations on each element by itself.
#pragma once

#include <memory>

#include "ttnn-sys/src/shim/tensor.hpp"

namespace ttnn_sys {

enum class Activation : std::uint8_t;

// The activation is applied to the sum.
std::unique_ptr<Tensor> add(const Tensor& a, const Tensor& b, Activation on_output);
// The activation is applied to `a` before the product.
std::unique_ptr<Tensor> multiply(const Tensor& a, const Tensor& b, Activation on_a);
std::unique_ptr<Tensor> add_scalar(const Tensor& x, float value);
std::unique_ptr<Tensor> multiply_scalar(const Tensor& x, float value);
std::unique_ptr<Tensor> gelu(const Tensor& x);
std::unique_ptr<Tensor> silu(const Tensor& x);
std::unique_ptr<Tensor> typecast(const Tensor& x, DataType dtype);

}  // namespace ttnn_sys
