#include "ttnn-sys/src/shim/transformer.hpp"

#include <ttnn/operations/embedding/embedding.hpp>
#include <ttnn/operations/experimental/transformer/nlp_concat_heads/nlp_concat_heads.hpp>
#include <ttnn/operations/experimental/transformer/nlp_create_qkv_heads/nlp_create_qkv_heads.hpp>
#include <ttnn/operations/experimental/transformer/rotary_embedding/rotary_embedding.hpp>
#include <ttnn/operations/normalization/layernorm/layernorm.hpp>
#include <ttnn/operations/normalization/rmsnorm/rmsnorm.hpp>
#include <ttnn/operations/transformer/sdpa/sdpa.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {
namespace {

// Names for arguments that are left to TT-NN.
constexpr auto no_bias = std::nullopt;
constexpr auto no_residual = std::nullopt;
constexpr auto same_memory = std::nullopt;
constexpr auto default_program = std::nullopt;

}  // namespace

std::unique_ptr<Tensor> Heads::q() const { return std::make_unique<Tensor>(queries); }
std::unique_ptr<Tensor> Heads::k() const { return std::make_unique<Tensor>(keys); }
std::unique_ptr<Tensor> Heads::v() const { return std::make_unique<Tensor>(values); }

std::unique_ptr<Tensor> layer_norm(
    const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon, const Compute& compute) {
    return wrap(ttnn::layer_norm(
        get(x), epsilon, get(weight), get(bias), no_residual, same_memory, default_program, to_ttnn(compute)));
}

std::unique_ptr<Tensor> rms_norm(
    const Tensor& x, rust::Slice<const TensorRef> weight, float epsilon, const Compute& compute) {
    return wrap(ttnn::rms_norm(
        get(x), epsilon, get(weight), no_bias, no_residual, same_memory, default_program, to_ttnn(compute)));
}

std::unique_ptr<Tensor> embedding(const Tensor& ids, const Tensor& table) {
    constexpr auto no_pad_token = std::nullopt;
    return wrap(ttnn::embedding(get(ids), get(table), no_pad_token, tt::tt_metal::Layout::TILE));
}

std::unique_ptr<Tensor> rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    return wrap(ttnn::experimental::rotary_embedding(get(x), get(cos), get(sin)));
}

std::unique_ptr<Heads> split_heads(const Tensor& x, std::uint32_t heads, std::uint32_t kv_heads) {
    constexpr auto fused_with_queries = std::nullopt;
    constexpr bool transpose_keys = false;
    auto [q, k, v] = ttnn::experimental::nlp_create_qkv_heads(
        get(x), fused_with_queries, heads, kv_heads, transpose_keys, same_memory);
    return std::make_unique<Heads>(Heads{owned(std::move(q)), owned(std::move(k)), owned(std::move(v))});
}

std::unique_ptr<Tensor> concat_heads(const Tensor& x) {
    return wrap(ttnn::experimental::nlp_concat_heads(get(x)));
}

std::unique_ptr<Tensor> attention(
    const Tensor& q,
    const Tensor& k,
    const Tensor& v,
    rust::Slice<const TensorRef> mask,
    float scale,
    std::uint32_t q_chunk,
    std::uint32_t k_chunk,
    const Compute& compute) {
    ttnn::operations::transformer::SDPAProgramConfig program;
    program.compute_with_storage_grid_size = get(q).device()->compute_with_storage_grid_size();
    program.q_chunk_size = q_chunk;
    program.k_chunk_size = k_chunk;
    program.exp_approx_mode = compute.approximate;
    constexpr bool causal = false;
    constexpr auto no_window = std::nullopt;
    return wrap(ttnn::transformer::scaled_dot_product_attention(
        get(q), get(k), get(v), get(mask), causal, scale, no_window, same_memory, program, to_ttnn(compute)));
}

}  // namespace ttnn_sys
