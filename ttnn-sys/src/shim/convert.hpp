// From the bridge's types to TT-NN's. Only the shim's own files include this.
#pragma once

#include <memory>
#include <optional>

#include <tt-metalium/mesh_device.hpp>
#include <ttnn/operations/core/compute_kernel/compute_kernel_config.hpp>
#include <ttnn/operations/eltwise/unary/common/unary_op_types.hpp>
#include <ttnn/tensor/tensor.hpp>
#include <ttnn/types.hpp>

#include "ttnn-sys/src/bridge.rs.h"

namespace ttnn_sys {

// The tensor itself; throws where it has no memory, which TT-NN does not check everywhere.
const ttnn::Tensor& get(const Tensor& tensor);
// None where the list is empty.
std::optional<ttnn::Tensor> get(rust::Slice<const TensorRef> none_or_one);
Tensor owned(ttnn::Tensor value);
std::unique_ptr<Tensor> wrap(ttnn::Tensor value);

tt::tt_metal::Shape to_shape(rust::Slice<const std::uint32_t> shape);
tt::tt_metal::DataType to_ttnn(DataType dtype);
tt::tt_metal::Layout to_ttnn(Layout layout);
std::optional<ttnn::MemoryConfig> to_ttnn(const Memory& memory);
ttnn::DeviceComputeKernelConfig to_ttnn(const Compute& compute);
std::optional<ttnn::operations::unary::UnaryWithParam> to_ttnn(Activation activation);

DataType from_ttnn(tt::tt_metal::DataType dtype);
Layout from_ttnn(tt::tt_metal::Layout layout);

}  // namespace ttnn_sys
