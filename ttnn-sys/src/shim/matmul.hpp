// Matrix products.
#pragma once

#include <memory>

#include "rust/cxx.h"
#include "ttnn-sys/src/shim/tensor.hpp"

namespace ttnn_sys {

enum class Activation : std::uint8_t;
struct Compute;
struct MatmulProgram;
struct TensorRef;

std::unique_ptr<Tensor> linear(
    const Tensor& x,
    const Tensor& weight,
    rust::Slice<const TensorRef> bias,
    Activation activation,
    DataType dtype,
    const Memory& memory,
    const Compute& compute,
    const MatmulProgram& program);

}  // namespace ttnn_sys
