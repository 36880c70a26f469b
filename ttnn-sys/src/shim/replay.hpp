// Traces, which replay a sequence of operations, and events.
#pragma once

#include <cstdint>
#include <memory>

#include "ttnn-sys/src/shim/mesh.hpp"

namespace tt::tt_metal::distributed {
class MeshEvent;
}

namespace ttnn_sys {

std::uint32_t begin_trace(const Mesh& mesh);
void end_trace(const Mesh& mesh, std::uint32_t trace);
void execute_trace(const Mesh& mesh, std::uint32_t trace, bool blocking);
void release_trace(const Mesh& mesh, std::uint32_t trace);

struct Event {
    std::shared_ptr<tt::tt_metal::distributed::MeshEvent> value;
};

std::unique_ptr<Event> record_event(const Mesh& mesh);
void wait_for_event(const Event& event);

}  // namespace ttnn_sys
