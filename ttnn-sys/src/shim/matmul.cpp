#include "ttnn-sys/src/shim/matmul.hpp"

#include <ttnn/operations/matmul/matmul.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {
namespace {

namespace matmul = ttnn::operations::matmul;
using ttnn::operations::unary::UnaryWithParam;

using Fused = std::optional<UnaryWithParam>;

matmul::MatmulProgramConfig multicast_1d(const MatmulProgram& program, const Fused& activation) {
    matmul::MatmulMultiCoreReuseMultiCast1DProgramConfig config;
    config.compute_with_storage_grid_size = tt::tt_metal::CoreCoord(program.grid_x, program.grid_y);
    config.in0_block_w = program.in0_block_w;
    config.out_subblock_h = program.out_subblock_h;
    config.out_subblock_w = program.out_subblock_w;
    config.out_block_h = program.per_core_m;
    config.out_block_w = program.per_core_n;
    config.per_core_M = program.per_core_m;
    config.per_core_N = program.per_core_n;
    config.fuse_batch = true;
    config.fused_activation = activation;
    config.mcast_in0 = program.mcast_in0;
    return config;
}

matmul::MatmulProgramConfig multicast_2d(const MatmulProgram& program, const Fused& activation) {
    matmul::MatmulMultiCoreReuseMultiCastProgramConfig config;
    config.compute_with_storage_grid_size = tt::tt_metal::CoreCoord(program.grid_x, program.grid_y);
    config.in0_block_w = program.in0_block_w;
    config.out_subblock_h = program.out_subblock_h;
    config.out_subblock_w = program.out_subblock_w;
    config.out_block_h = program.per_core_m;
    config.out_block_w = program.per_core_n;
    config.per_core_M = program.per_core_m;
    config.per_core_N = program.per_core_n;
    config.transpose_mcast = program.transpose_mcast;
    config.fused_activation = activation;
    return config;
}

}  // namespace

std::unique_ptr<Tensor> linear(
    const Tensor& x,
    const Tensor& weight,
    rust::Slice<const TensorRef> bias,
    Activation activation,
    DataType dtype,
    const Memory& memory,
    const Compute& compute,
    const MatmulProgram& program) {
    const Fused fused = to_ttnn(activation);
    std::optional<const matmul::MatmulProgramConfig> config;
    std::optional<const ttnn::CoreGrid> grid;
    // TT-NN takes the activation from the program configuration where there is one, and as an argument otherwise.
    std::optional<const ttnn::Activation> argument;
    switch (program.kind) {
        case MatmulProgramKind::Multicast1d: config.emplace(multicast_1d(program, fused)); break;
        case MatmulProgramKind::Multicast2d: config.emplace(multicast_2d(program, fused)); break;
        case MatmulProgramKind::CoreGrid: grid.emplace(program.grid_x, program.grid_y); [[fallthrough]];
        default:
            if (fused) {
                argument.emplace(*fused);
            }
    }
    constexpr bool transpose = false;
    return wrap(ttnn::linear(
        get(x),
        get(weight),
        get(bias),
        transpose,
        transpose,
        to_ttnn(memory),
        to_ttnn(dtype),
        config,
        argument,
        to_ttnn(compute),
        grid));
}

}  // namespace ttnn_sys
