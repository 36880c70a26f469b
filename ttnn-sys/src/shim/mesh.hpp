// A mesh of chips.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"

namespace tt::tt_metal::distributed {
class MeshDevice;
}

namespace ttnn_sys {

struct MeshOptions;
struct MeshFacts;

struct Mesh {
    std::shared_ptr<tt::tt_metal::distributed::MeshDevice> device;
};

std::unique_ptr<Mesh> open_mesh(const MeshOptions& options);
std::unique_ptr<Mesh> submesh(
    const Mesh& mesh, std::uint32_t rows, std::uint32_t cols, std::uint32_t row, std::uint32_t col);
void close_mesh(const Mesh& mesh);
MeshFacts mesh_facts(const Mesh& mesh);

// Returns when everything enqueued on the mesh has been done.
void synchronize(const Mesh& mesh);

}  // namespace ttnn_sys
