// What a transformer is made of, besides its matrix products.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"
#include "ttnn-sys/src/shim/tensor.hpp"

namespace ttnn_sys {

struct Compute;
struct TensorRef;

// Queries, keys and values.
struct Heads {
    Tensor queries, keys, values;

    std::unique_ptr<Tensor> q() const;
    std::unique_ptr<Tensor> k() const;
    std::unique_ptr<Tensor> v() const;
};

std::unique_ptr<Tensor> layer_norm(
    const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon, const Compute& compute);
std::unique_ptr<Tensor> rms_norm(
    const Tensor& x, rust::Slice<const TensorRef> weight, float epsilon, const Compute& compute);
std::unique_ptr<Tensor> embedding(const Tensor& ids, const Tensor& table);
std::unique_ptr<Tensor> rotary(const Tensor& x, const Tensor& cos, const Tensor& sin);
std::unique_ptr<Heads> split_heads(const Tensor& x, std::uint32_t heads, std::uint32_t kv_heads);
std::unique_ptr<Tensor> concat_heads(const Tensor& x);
std::unique_ptr<Tensor> attention(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    rust::Slice<const TensorRef> mask,
    float scale,
    std::uint32_t q_chunk,
    std::uint32_t k_chunk,
    const Compute& compute);

}  // namespace ttnn_sys
