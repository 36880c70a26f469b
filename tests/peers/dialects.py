"""The ways in which clients write numpy arrays in msgpack, over a websocket of their own."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
from openpi_client import msgpack_numpy as openpi
from websockets.sync.client import ClientConnection, connect

from running import PATIENCE

Packer = Callable[[Any], bytes]


def _text_keys(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return {key.decode(): part for key, part in openpi.pack_array(value).items()}
    raise TypeError(f"{type(value)} does not travel")


PACKERS: dict[str, Packer] = {
    "openpi": openpi.packb,
    "openpi with keys of text": lambda message: msgpack.packb(message, default=_text_keys),
    "msgpack-numpy": lambda message: msgpack.packb(message, default=msgpack_numpy.encode),
}


class Wire:
    """A connection without a client library: what is packed how is up to the test."""

    def __init__(self, address: str, trust: ssl.SSLContext | None = None, **options: Any):
        scheme = "wss" if trust else "ws"
        self.socket: ClientConnection = connect(
            f"{scheme}://{address}", ssl=trust, compression=None, max_size=None, **options
        )
        self.metadata = openpi.unpackb(self.socket.recv(PATIENCE))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, message: bytes | str) -> bytes | str:
        """Sends one frame and gives back the next one."""
        self.socket.send(message)
        return self.socket.recv(PATIENCE)

    def infer(self, observation: Any, pack: Packer = openpi.packb) -> dict[str, Any]:
        """The answer to an observation; the error's text is raised."""
        answer = self.ask(pack(observation))
        if isinstance(answer, str):
            raise RuntimeError(answer)
        unpacked: dict[str, Any] = openpi.unpackb(answer)
        return unpacked
