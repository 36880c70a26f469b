"""Captures and runs a trace of one call on a mock chip: ends with 0 if TT-NN can."""

from __future__ import annotations

import faulthandler

import ttnn

faulthandler.enable()
mesh = ttnn.open_mesh_device(ttnn.MeshShape(1, 1), trace_region_size=1 << 20)
x = ttnn.empty((1, 1, 32, 32), dtype=ttnn.bfloat16, layout=ttnn.TILE_LAYOUT, device=mesh)
ttnn.add(x, x)  # the program must be there before a capture
trace = ttnn.begin_trace_capture(mesh, cq_id=0)
y = ttnn.add(x, x)
ttnn.end_trace_capture(mesh, trace, cq_id=0)
ttnn.execute_trace(mesh, trace, cq_id=0, blocking=True)
ttnn.release_trace(mesh, trace)
