#include "ttnn-sys/src/shim/replay.hpp"

#include <tt-metalium/mesh_device.hpp>
#include <ttnn/events.hpp>
#include <ttnn/operations/trace.hpp>

namespace ttnn_sys {
namespace {

namespace trace_ops = ttnn::operations::trace;
using ttnn::MeshTraceId;

// Meshes are opened with one command queue.
const tt::tt_metal::QueueId queue(0);

}  // namespace

std::uint32_t begin_trace(const Mesh& mesh) { return *trace_ops::begin_trace_capture(mesh.device.get(), queue); }

void end_trace(const Mesh& mesh, std::uint32_t trace) {
    trace_ops::end_trace_capture(mesh.device.get(), MeshTraceId(trace), queue);
}

void execute_trace(const Mesh& mesh, std::uint32_t trace, bool blocking) {
    trace_ops::execute_trace(mesh.device.get(), MeshTraceId(trace), queue, blocking);
}

void release_trace(const Mesh& mesh, std::uint32_t trace) {
    trace_ops::release_trace(mesh.device.get(), MeshTraceId(trace));
}

std::unique_ptr<Event> record_event(const Mesh& mesh) {
    return std::make_unique<Event>(Event{
        std::make_shared<ttnn::MeshEvent>(ttnn::events::record_mesh_event(mesh.device.get(), queue))});
}

void wait_for_event(const Event& event) { ttnn::events::event_synchronize(*event.value); }

}  // namespace ttnn_sys
