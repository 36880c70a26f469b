"""Opening a mock machine as its chips, each a submesh of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ttnn

from operations import Chip
from program import Export, Refused, Socket

# Memory of a socket on the receiving chip: room for several pages of a tensor.
SOCKET_BYTES = 64 * 1024


@contextmanager
def machine(export: Export) -> Iterator[dict[int, Chip]]:
    """The chips of the machine that the environment names, by their numbers."""
    options = {}
    if export.arch == "wormhole":
        # By default the mock says 8 × 8 cores and checks programs against 8 × 7.
        options["dispatch_core_config"] = ttnn.DispatchCoreConfig(
            ttnn.DispatchCoreType.WORKER, ttnn.DispatchCoreAxis.ROW
        )
    if export.sockets:
        ttnn.set_fabric_config(ttnn.FabricConfig.FABRIC_1D)
    mesh = ttnn.open_mesh_device(ttnn.MeshShape(*export.mesh), **options)
    try:
        submeshes = mesh.create_submeshes(ttnn.MeshShape(1, 1))
        chips = {number: Chip(device, {}, {}) for number, device in enumerate(submeshes)}
        for number, socket in export.sockets.items():
            connect(chips, number, socket)
        yield chips
    finally:
        ttnn.close_mesh_device(mesh)


def connect(chips: dict[int, Chip], number: int, socket: Socket) -> None:
    """Opens socket `number`. Each has a core of its own on both chips."""
    sender, receiver = chips[socket.from_chip], chips[socket.to_chip]
    columns, _ = sender.grid()
    core = ttnn.MeshCoreCoord(ttnn.MeshCoordinate(0, 0), ttnn.CoreCoord(number % columns, number // columns))
    config = ttnn.SocketConfig(
        [ttnn.SocketConnection(core, core)], ttnn.SocketMemoryConfig(ttnn.BufferType.L1, SOCKET_BYTES)
    )
    try:
        ends = ttnn.create_socket_pair(sender.device, receiver.device, config)
    except RuntimeError as error:
        raise Refused(f"socket {number} ({socket}): {said(error)}") from error
    sender.senders[number], receiver.receivers[number] = ends


def said(error: Exception) -> str:
    """What went wrong in one line: TT-NN's message without the addresses of its functions, or Python's own error."""
    message = " ".join(str(error).split("backtrace:")[0].split())
    return f"TT-NN says: {message}" if isinstance(error, RuntimeError) else f"{type(error).__name__}: {message}"
