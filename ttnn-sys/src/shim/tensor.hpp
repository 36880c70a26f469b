// Tensors on a mesh, and the ways between them and host memory.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"
#include "ttnn-sys/src/shim/mesh.hpp"

namespace tt::tt_metal {
class Tensor;
}

namespace ttnn_sys {

enum class DataType : std::uint8_t;
enum class Layout : std::uint8_t;
struct Memory;
struct TensorFacts;

struct Tensor {
    std::shared_ptr<tt::tt_metal::Tensor> value;
    // Made in a query: it has a shape and no memory.
    bool planned;
};

// Every chip of the mesh gets the whole tensor. Values stand in row-major order.
std::unique_ptr<Tensor> tensor_from_f32(
    const Mesh& mesh,
    rust::Slice<const float> values,
    rust::Slice<const std::uint32_t> shape,
    DataType dtype,
    Layout layout,
    const Memory& memory);
std::unique_ptr<Tensor> tensor_from_bf16(
    const Mesh& mesh,
    rust::Slice<const std::uint16_t> bits,
    rust::Slice<const std::uint32_t> shape,
    Layout layout,
    const Memory& memory);
std::unique_ptr<Tensor> tensor_from_u32(
    const Mesh& mesh,
    rust::Slice<const std::uint32_t> values,
    rust::Slice<const std::uint32_t> shape,
    Layout layout,
    const Memory& memory);
// Words are in TT-NN's own tile format, as pack_bfp8 gives them.
std::unique_ptr<Tensor> tensor_from_bfp8_words(
    const Mesh& mesh,
    rust::Slice<const std::uint32_t> words,
    rust::Slice<const std::uint32_t> shape,
    const Memory& memory);
std::unique_ptr<Tensor> empty_tensor(
    const Mesh& mesh, rust::Slice<const std::uint32_t> shape, DataType dtype, Layout layout, const Memory& memory);

// Into the buffer that the tensor already has.
void write_f32(const Tensor& tensor, rust::Slice<const float> values);
void write_bf16(const Tensor& tensor, rust::Slice<const std::uint16_t> bits);
void write_u32(const Tensor& tensor, rust::Slice<const std::uint32_t> values);
void write_bfp8_words(const Tensor& tensor, rust::Slice<const std::uint32_t> words);

// From the first chip of the mesh.
rust::Vec<float> read_f32(const Tensor& tensor);
rust::Vec<std::uint32_t> read_u32(const Tensor& tensor);

TensorFacts tensor_facts(const Tensor& tensor);
void deallocate(const Tensor& tensor);

// On the host, but TT-NN asks the chips how they align the exponents: an open mesh shows that there are some.
rust::Vec<std::uint32_t> pack_bfp8(
    const Mesh& open, rust::Slice<const float> values, rust::Slice<const std::uint32_t> shape);
rust::Vec<float> unpack_bfp8(
    const Mesh& open, rust::Slice<const std::uint32_t> words, rust::Slice<const std::uint32_t> shape);

}  // namespace ttnn_sys
