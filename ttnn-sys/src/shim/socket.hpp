// Channels between the chips of two submeshes, over the fabric.
#pragma once

#include <cstdint>
#include <memory>

#include "ttnn-sys/src/shim/tensor.hpp"

namespace tt::tt_metal::distributed {
class MeshSocket;
}

namespace ttnn_sys {

struct Socket {
    std::shared_ptr<tt::tt_metal::distributed::MeshSocket> value;
};

struct SocketPair {
    Socket sending, receiving;

    std::unique_ptr<Socket> sender() const;
    std::unique_ptr<Socket> receiver() const;
};

// Chip by chip; both meshes must have the same shape. The buffer lies in the L1 of the receiver.
std::unique_ptr<SocketPair> socket_pair(const Mesh& sender, const Mesh& receiver, std::uint32_t buffer_bytes);
void send(const Tensor& tensor, const Socket& socket);
void receive(const Tensor& tensor, const Socket& socket);

}  // namespace ttnn_sys
