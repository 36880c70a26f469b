// Operations that move values and compute nothing.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"
#include "ttnn-sys/src/shim/tensor.hpp"

namespace ttnn_sys {

struct Padding;
struct TensorRef;

std::unique_ptr<Tensor> concat(rust::Slice<const TensorRef> parts, std::int32_t dim);
std::unique_ptr<Tensor> slice(
    const Tensor& x, rust::Slice<const std::uint32_t> begin, rust::Slice<const std::uint32_t> end);
std::unique_ptr<Tensor> reshape(const Tensor& x, rust::Slice<const std::uint32_t> shape);
std::unique_ptr<Tensor> permute(const Tensor& x, rust::Slice<const std::uint32_t> dims);
std::unique_ptr<Tensor> pad(const Tensor& x, rust::Slice<const Padding> padding, float value);
std::unique_ptr<Tensor> to_layout(const Tensor& x, Layout layout);
std::unique_ptr<Tensor> to_memory(const Tensor& x, const Memory& memory);
void copy(const Tensor& from, const Tensor& into);

}  // namespace ttnn_sys
