#include "ttnn-sys/src/shim/tensor.hpp"

#include <cstring>
#include <stdexcept>
#include <vector>

#include <tt-metalium/bfloat16.hpp>
#include <tt-metalium/host_buffer.hpp>
#include <ttnn/distributed/api.hpp>
#include <ttnn/tensor/host_buffer/functions.hpp>
#include <ttnn/tensor/tensor_ops.hpp>
#include <ttnn/tensor/tensor_spec.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {
namespace {

using tt::tt_metal::MemoryConfig;
using tt::tt_metal::PageConfig;
using tt::tt_metal::TensorLayout;
using tt::tt_metal::TensorSpec;
using Shape = rust::Slice<const std::uint32_t>;

TensorSpec spec(Shape shape, DataType dtype, Layout layout, const Memory& memory) {
    return TensorSpec(
        to_shape(shape),
        TensorLayout(to_ttnn(dtype), PageConfig(to_ttnn(layout)), to_ttnn(memory).value_or(MemoryConfig{})));
}

// Rounds to the nearest bf16, ties to even, as TT-NN does.
std::vector<bfloat16> to_bf16(rust::Slice<const float> values) {
    return std::vector<bfloat16>(values.begin(), values.end());
}

std::vector<bfloat16> bf16_from_bits(rust::Slice<const std::uint16_t> bits) {
    static_assert(sizeof(bfloat16) == sizeof(std::uint16_t));
    std::vector<bfloat16> values(bits.size());
    std::memcpy(values.data(), bits.data(), bits.size() * sizeof(bfloat16));
    return values;
}

template <typename T>
ttnn::Tensor host_tensor(std::vector<T> values, const TensorSpec& spec) {
    return ttnn::Tensor::from_vector(std::move(values), spec);
}

ttnn::Tensor host_tensor_f32(rust::Slice<const float> values, const TensorSpec& spec) {
    if (spec.data_type() == tt::tt_metal::DataType::BFLOAT16) {
        return host_tensor(to_bf16(values), spec);
    }
    return host_tensor(std::vector<float>(values.begin(), values.end()), spec);
}

ttnn::Tensor host_tensor_words(rust::Slice<const std::uint32_t> words, const TensorSpec& spec) {
    const auto bytes = spec.compute_packed_buffer_size_bytes();
    if (words.size() * sizeof(std::uint32_t) != bytes) {
        throw std::invalid_argument(
            "bfloat8_b tiles of this shape take " + std::to_string(bytes / sizeof(std::uint32_t)) + " words, not " +
            std::to_string(words.size()));
    }
    return ttnn::Tensor(
        tt::tt_metal::HostBuffer(std::vector<std::uint32_t>(words.begin(), words.end())), spec);
}

std::unique_ptr<Tensor> upload(const Mesh& mesh, const ttnn::Tensor& host) {
    return wrap(host.to_device(mesh.device.get(), host.memory_config()));
}

void write(const Tensor& tensor, const ttnn::Tensor& host) {
    tt::tt_metal::copy_to_device(host, *tensor.value);
}

template <typename T>
rust::Vec<T> to_rust(const std::vector<T>& values) {
    rust::Vec<T> copy;
    copy.reserve(values.size());
    std::copy(values.begin(), values.end(), std::back_inserter(copy));
    return copy;
}

rust::Vec<std::uint32_t> to_rust(const tt::tt_metal::Shape& shape) {
    return to_rust(std::vector<std::uint32_t>(shape.cbegin(), shape.cend()));
}

// Every chip holds the same, or at least a tensor of the same shape: the first one stands for all.
ttnn::Tensor first_chip(const Tensor& tensor) {
    return ttnn::distributed::get_device_tensors(get(tensor).cpu()).at(0);
}

constexpr Memory in_dram{Placement::Dram, 0, 0, 0, 0};

}  // namespace

std::unique_ptr<Tensor> tensor_from_f32(
    const Mesh& mesh,
    rust::Slice<const float> values,
    Shape shape,
    DataType dtype,
    Layout layout,
    const Memory& memory) {
    return upload(mesh, host_tensor_f32(values, spec(shape, dtype, layout, memory)));
}

std::unique_ptr<Tensor> tensor_from_bf16(
    const Mesh& mesh, rust::Slice<const std::uint16_t> bits, Shape shape, Layout layout, const Memory& memory) {
    return upload(mesh, host_tensor(bf16_from_bits(bits), spec(shape, DataType::Bf16, layout, memory)));
}

std::unique_ptr<Tensor> tensor_from_u32(
    const Mesh& mesh, rust::Slice<const std::uint32_t> values, Shape shape, Layout layout, const Memory& memory) {
    return upload(
        mesh,
        host_tensor(
            std::vector<std::uint32_t>(values.begin(), values.end()), spec(shape, DataType::U32, layout, memory)));
}

std::unique_ptr<Tensor> tensor_from_bfp8_words(
    const Mesh& mesh, rust::Slice<const std::uint32_t> words, Shape shape, const Memory& memory) {
    return upload(mesh, host_tensor_words(words, spec(shape, DataType::Bfp8B, Layout::Tile, memory)));
}

std::unique_ptr<Tensor> empty_tensor(
    const Mesh& mesh, Shape shape, DataType dtype, Layout layout, const Memory& memory) {
    return wrap(tt::tt_metal::create_device_tensor(spec(shape, dtype, layout, memory), mesh.device.get()));
}

void write_f32(const Tensor& tensor, rust::Slice<const float> values) {
    write(tensor, host_tensor_f32(values, get(tensor).tensor_spec()));
}

void write_bf16(const Tensor& tensor, rust::Slice<const std::uint16_t> bits) {
    write(tensor, host_tensor(bf16_from_bits(bits), get(tensor).tensor_spec()));
}

void write_u32(const Tensor& tensor, rust::Slice<const std::uint32_t> values) {
    write(
        tensor,
        host_tensor(std::vector<std::uint32_t>(values.begin(), values.end()), get(tensor).tensor_spec()));
}

void write_bfp8_words(const Tensor& tensor, rust::Slice<const std::uint32_t> words) {
    write(tensor, host_tensor_words(words, get(tensor).tensor_spec()));
}

rust::Vec<float> read_f32(const Tensor& tensor) {
    const auto host = first_chip(tensor);
    if (host.dtype() == tt::tt_metal::DataType::BFLOAT16) {
        const auto values = host.to_vector<bfloat16>();
        return to_rust(std::vector<float>(values.begin(), values.end()));
    }
    return to_rust(host.to_vector<float>());
}

rust::Vec<std::uint32_t> read_u32(const Tensor& tensor) {
    return to_rust(first_chip(tensor).to_vector<std::uint32_t>());
}

TensorFacts tensor_facts(const Tensor& tensor) {
    const auto& value = get(tensor);
    TensorFacts facts;
    facts.shape = to_rust(value.logical_shape());
    facts.padded_shape = to_rust(value.padded_shape());
    facts.dtype = from_ttnn(value.dtype());
    facts.layout = from_ttnn(value.layout());
    facts.on_l1 = value.memory_config().is_l1();
    facts.sharded = value.memory_config().is_sharded();
    facts.planned = tensor.planned;
    return facts;
}

void deallocate(const Tensor& tensor) { tensor.value->deallocate(/*force=*/true); }

rust::Vec<std::uint32_t> pack_bfp8(const Mesh&, rust::Slice<const float> values, Shape shape) {
    const auto tensor = host_tensor_f32(values, spec(shape, DataType::Bfp8B, Layout::Tile, in_dram));
    const auto buffer = tt::tt_metal::host_buffer::get_host_buffer(tensor);
    const auto words = buffer.view_as<const std::uint32_t>();
    return to_rust(std::vector<std::uint32_t>(words.begin(), words.end()));
}

rust::Vec<float> unpack_bfp8(const Mesh&, rust::Slice<const std::uint32_t> words, Shape shape) {
    return to_rust(host_tensor_words(words, spec(shape, DataType::Bfp8B, Layout::Tile, in_dram)).to_vector<float>());
}

}  // namespace ttnn_sys
