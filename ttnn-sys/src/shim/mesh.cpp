#include "ttnn-sys/src/shim/mesh.hpp"

#include <enchantum/enchantum.hpp>
#include <tt-metalium/distributed.hpp>
#include <tt-metalium/experimental/fabric/fabric.hpp>
#include <tt-metalium/mesh_device.hpp>

#include "ttnn-sys/src/bridge.rs.h"

namespace ttnn_sys {
namespace {

using tt::tt_fabric::FabricConfig;
using tt::tt_metal::DispatchCoreAxis;
using tt::tt_metal::DispatchCoreConfig;
using tt::tt_metal::DispatchCoreType;
using tt::tt_metal::distributed::MeshCoordinate;
using tt::tt_metal::distributed::MeshDevice;
using tt::tt_metal::distributed::MeshDeviceConfig;
using tt::tt_metal::distributed::MeshShape;

FabricConfig fabric(Fabric fabric) {
    switch (fabric) {
        case Fabric::Line: return FabricConfig::FABRIC_1D;
        case Fabric::Ring: return FabricConfig::FABRIC_1D_RING;
        case Fabric::Mesh: return FabricConfig::FABRIC_2D;
        default: return FabricConfig::DISABLED;
    }
}

DispatchCoreConfig dispatch(bool ethernet) {
    return ethernet ? DispatchCoreConfig(DispatchCoreType::ETH) : DispatchCoreConfig(DispatchCoreType::WORKER);
}

}  // namespace

std::unique_ptr<Mesh> open_mesh(const MeshOptions& options) {
    // The fabric belongs to the process and has to be chosen before chips are opened.
    tt::tt_fabric::SetFabricConfig(fabric(options.fabric));
    constexpr std::size_t one_queue = 1;
    return std::make_unique<Mesh>(Mesh{MeshDevice::create(
        MeshDeviceConfig(MeshShape(options.rows, options.cols)),
        options.l1_small_size,
        options.trace_region_size,
        one_queue,
        dispatch(options.ethernet_dispatch))});
}

std::unique_ptr<Mesh> submesh(
    const Mesh& mesh, std::uint32_t rows, std::uint32_t cols, std::uint32_t row, std::uint32_t col) {
    return std::make_unique<Mesh>(
        Mesh{mesh.device->create_submesh(MeshShape(rows, cols), MeshCoordinate(row, col))});
}

void close_mesh(const Mesh& mesh) { mesh.device->close(); }

MeshFacts mesh_facts(const Mesh& mesh) {
    const auto grid = mesh.device->compute_with_storage_grid_size();
    MeshFacts facts;
    facts.arch = std::string(enchantum::to_string(mesh.device->arch()));
    facts.grid_x = grid.x;
    facts.grid_y = grid.y;
    facts.dram_bytes = std::uint64_t{mesh.device->dram_size_per_channel()} * mesh.device->num_dram_channels();
    facts.l1_bytes_per_core = mesh.device->l1_size_per_core();
    for (const int id : mesh.device->get_device_ids()) {
        facts.device_ids.push_back(id);
    }
    return facts;
}

void synchronize(const Mesh& mesh) { tt::tt_metal::distributed::Synchronize(mesh.device.get(), std::nullopt); }

}  // namespace ttnn_sys
