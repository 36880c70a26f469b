"""What mock chips do not check: whether a call's circular buffers reach into tensors that are kept in L1.

Circular buffers grow from the bottom of each core's L1, tensors from its top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import ttnn

from operations import Chip, Tensor, Tensors
from program import Spec

# ttnn.graph's functions do the same, and need torch.
GRAPH = ttnn._ttnn.graph

ONE_TILE = Spec((1, 1, 32, 32), "bf16", "tile", "l1")
TILE_BYTES = 32 * 32 * 2


def buffer_bytes(run: Callable[[], Tensors]) -> int:
    """Bytes per core of a call's circular buffers. Its programs are built, and not launched."""
    GRAPH.begin_graph_capture(GRAPH.RunMode.NO_DISPATCH)
    try:
        run()
    finally:
        trace = GRAPH.end_graph_capture()
    usage = GRAPH.extract_resource_usage_per_core(trace)
    return usage.peak_cb + usage.peak_dataflow_buffer + usage.peak_scratchpad


class CoreMemory:
    """The L1 of a chip's cores. To be made while sockets are in it, and no tensor."""

    def __init__(self, chip: Chip) -> None:
        highest = chip.empty(ONE_TILE)
        self.top = highest.buffer_address() + TILE_BYTES
        free = ttnn.get_memory_view(chip.device, ttnn.BufferType.L1).largest_contiguous_bytes_free_per_bank
        self.bottom = highest.buffer_address() - free

    def room(self, tensors: Iterable[Tensor]) -> int:
        """Bytes per core below all of `tensors`, which are alive."""
        in_l1 = (t.buffer_address() for t in tensors if t.memory_config().buffer_type == ttnn.BufferType.L1)
        return min(in_l1, default=self.top) - self.bottom
