#include "ttnn-sys/src/shim/convert.hpp"

#include <stdexcept>

#include <tt-metalium/graph_tracking.hpp>

namespace ttnn_sys {

using tt::tt_metal::BufferType;
using tt::tt_metal::CoreCoord;
using tt::tt_metal::CoreRange;
using tt::tt_metal::CoreRangeSet;
using tt::tt_metal::MathFidelity;
using tt::tt_metal::ShardSpec;
using tt::tt_metal::TensorMemoryLayout;
using ttnn::operations::unary::UnaryOpType;
using ttnn::operations::unary::UnaryWithParam;

namespace {

// A query is a capture that hooks into what would reach a chip.
bool in_query() { return tt::tt_metal::GraphTracker::instance().get_hook() != nullptr; }

}  // namespace

const ttnn::Tensor& get(const Tensor& tensor) {
    if (!tensor.value->is_allocated()) {
        throw std::runtime_error("a tensor was used after its memory was given back");
    }
    if (tensor.planned && !in_query()) {
        throw std::runtime_error("a tensor was used after the query that it was made in");
    }
    return *tensor.value;
}

std::optional<ttnn::Tensor> get(rust::Slice<const TensorRef> none_or_one) {
    return none_or_one.empty() ? std::nullopt : std::make_optional(get(none_or_one[0].tensor));
}

Tensor owned(ttnn::Tensor value) { return Tensor{std::make_shared<ttnn::Tensor>(std::move(value)), in_query()}; }

std::unique_ptr<Tensor> wrap(ttnn::Tensor value) { return std::make_unique<Tensor>(owned(std::move(value))); }

tt::tt_metal::Shape to_shape(rust::Slice<const std::uint32_t> shape) {
    return tt::tt_metal::Shape(tt::tt_metal::Shape::Container(shape.begin(), shape.end()));
}

tt::tt_metal::DataType to_ttnn(DataType dtype) {
    switch (dtype) {
        case DataType::Bf16: return tt::tt_metal::DataType::BFLOAT16;
        case DataType::F32: return tt::tt_metal::DataType::FLOAT32;
        case DataType::Bfp8B: return tt::tt_metal::DataType::BFLOAT8_B;
        case DataType::U32: return tt::tt_metal::DataType::UINT32;
    }
    throw std::invalid_argument("unknown data type");
}

DataType from_ttnn(tt::tt_metal::DataType dtype) {
    switch (dtype) {
        case tt::tt_metal::DataType::BFLOAT16: return DataType::Bf16;
        case tt::tt_metal::DataType::FLOAT32: return DataType::F32;
        case tt::tt_metal::DataType::BFLOAT8_B: return DataType::Bfp8B;
        case tt::tt_metal::DataType::UINT32: return DataType::U32;
        default: throw std::invalid_argument("TT-NN made a tensor of a data type that this bridge does not know");
    }
}

tt::tt_metal::Layout to_ttnn(Layout layout) {
    return layout == Layout::Tile ? tt::tt_metal::Layout::TILE : tt::tt_metal::Layout::ROW_MAJOR;
}

Layout from_ttnn(tt::tt_metal::Layout layout) {
    return layout == tt::tt_metal::Layout::TILE ? Layout::Tile : Layout::RowMajor;
}

namespace {

TensorMemoryLayout sharding(Placement placement) {
    switch (placement) {
        case Placement::HeightSharded: return TensorMemoryLayout::HEIGHT_SHARDED;
        case Placement::WidthSharded: return TensorMemoryLayout::WIDTH_SHARDED;
        default: return TensorMemoryLayout::BLOCK_SHARDED;
    }
}

}  // namespace

std::optional<ttnn::MemoryConfig> to_ttnn(const Memory& memory) {
    switch (memory.placement) {
        case Placement::Default: return std::nullopt;
        case Placement::Dram: return ttnn::MemoryConfig(TensorMemoryLayout::INTERLEAVED, BufferType::DRAM);
        case Placement::L1: return ttnn::MemoryConfig(TensorMemoryLayout::INTERLEAVED, BufferType::L1);
        default: break;
    }
    const CoreRange cores(CoreCoord(0, 0), CoreCoord(memory.grid_x - 1, memory.grid_y - 1));
    return ttnn::MemoryConfig(
        sharding(memory.placement),
        BufferType::L1,
        ShardSpec(CoreRangeSet(cores), {memory.shard_height, memory.shard_width}));
}

ttnn::DeviceComputeKernelConfig to_ttnn(const Compute& compute) {
    ttnn::DeviceComputeKernelConfig config;
    switch (compute.fidelity) {
        case Fidelity::LoFi: config.math_fidelity = MathFidelity::LoFi; break;
        case Fidelity::HiFi2: config.math_fidelity = MathFidelity::HiFi2; break;
        default: config.math_fidelity = MathFidelity::HiFi4; break;
    }
    config.math_approx_mode = compute.approximate;
    config.fp32_dest_acc_en = compute.fp32_accumulate;
    config.packer_l1_acc = compute.packer_l1_acc;
    return config;
}

std::optional<UnaryWithParam> to_ttnn(Activation activation) {
    // GELU's parameter chooses the lookup table; 0 is the accurate form.
    constexpr float accurate = 0.0f;
    switch (activation) {
        case Activation::Gelu: return UnaryWithParam(UnaryOpType::GELU, accurate);
        case Activation::Silu: return UnaryWithParam(UnaryOpType::SILU);
        default: return std::nullopt;
    }
}

}  // namespace ttnn_sys
