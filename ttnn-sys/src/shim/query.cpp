#include "ttnn-sys/src/shim/query.hpp"

#include <nlohmann/json.hpp>
#include <tt-metalium/allocator.hpp>
#include <ttnn/graph/graph_processor.hpp>
#include <ttnn/graph/graph_trace_utils.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {

using ttnn::graph::GraphProcessor;
using ttnn::graph::ScopedGraphCapture;

std::unique_ptr<Query> begin_query() {
    return std::make_unique<Query>(
        Query{std::make_shared<ScopedGraphCapture>(GraphProcessor::RunMode::NO_DISPATCH)});
}

ResourceUse end_query(const Query& query, const Mesh& mesh, const Tensor& output) {
    const auto graph = query.capture->end_graph_capture();
    const auto banks = mesh.device->allocator()->get_num_banks(tt::tt_metal::BufferType::L1);
    const auto use = ttnn::graph::extract_resource_usage_per_core(graph, banks);
    ResourceUse result{use.peak_cb, use.peak_l1, use.peak_total, 0};
    if (output.value->memory_config().is_l1()) {
        result.l1_output = ttnn::graph::extract_l1_output_buffer_allocation_size_per_core(*output.value, banks);
    }
    return result;
}

}  // namespace ttnn_sys
