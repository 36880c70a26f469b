#include "ttnn-sys/src/shim/socket.hpp"

#include <stdexcept>
#include <vector>

#include <tt-metalium/experimental/sockets/mesh_socket.hpp>
#include <ttnn/operations/experimental/ccl/send_recv_async/recv_async/recv_async.hpp>
#include <ttnn/operations/experimental/ccl/send_recv_async/send_async/send_async.hpp>

#include "ttnn-sys/src/shim/convert.hpp"

namespace ttnn_sys {
namespace {

using namespace tt::tt_metal::distributed;

Socket shared(MeshSocket socket) { return Socket{std::make_shared<MeshSocket>(std::move(socket))}; }

}  // namespace

std::unique_ptr<Socket> SocketPair::sender() const { return std::make_unique<Socket>(sending); }
std::unique_ptr<Socket> SocketPair::receiver() const { return std::make_unique<Socket>(receiving); }

std::unique_ptr<SocketPair> socket_pair(const Mesh& sender, const Mesh& receiver, std::uint32_t buffer_bytes) {
    if (sender.device->shape() != receiver.device->shape()) {
        throw std::invalid_argument("the meshes at the two ends of a socket differ in shape");
    }
    const tt::tt_metal::CoreCoord core(0, 0);
    std::vector<SocketConnection> connections;
    for (const auto& chip : MeshCoordinateRange(sender.device->shape())) {
        connections.emplace_back(MeshCoreCoord(chip, core), MeshCoreCoord(chip, core));
    }
    const SocketMemoryConfig memory(tt::tt_metal::BufferType::L1, buffer_bytes);
    auto [sending, receiving] =
        MeshSocket::create_socket_pair(sender.device, receiver.device, SocketConfig(connections, memory));
    return std::make_unique<SocketPair>(SocketPair{shared(std::move(sending)), shared(std::move(receiving))});
}

void send(const Tensor& tensor, const Socket& socket) { ttnn::experimental::send_async(get(tensor), *socket.value); }

void receive(const Tensor& tensor, const Socket& socket) {
    ttnn::experimental::recv_async(get(tensor), *socket.value);
}

}  // namespace ttnn_sys
