"""Who may come in, and whether anybody can listen."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus

from conftest import Serve
from dialects import Wire
from observations import Observation, same
from running import PATIENCE

OBSERVATION = Observation.of("libero", 1).wire()


def test_api_keys(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-secret\n\nsecond-secret\n")
    with serve("--profile", "libero", "--api-keys", file) as server:
        for wrong in (None, "first", "first-secrets", "FIRST-SECRET", "first-secret\tsecond-secret"):
            with pytest.raises(InvalidStatus) as error:
                server.client(wrong)
            assert error.value.response.status_code == 401
        one, other = (server.client(key) for key in ("first-secret", "second-secret"))
        same(one.infer(OBSERVATION), other.infer(OBSERVATION)["actions"])

        for path in ("/v1/metadata", "/metrics"):
            assert server.get(path).status_code == 401
            assert server.get(path, headers={"Authorization": "Api-Key wrong"}).status_code == 401
            assert server.get(path, headers={"Authorization": "Api-Key first-secret"}).status_code == 200
            assert server.get(path, headers={"Authorization": "Bearer second-secret"}).status_code == 200
        assert server.post("/v1/actions", json={}).status_code == 401
        assert server.post("/v1/actions", json={}, headers={"Authorization": "Bearer first-secret"}).status_code == 400
        # Load balancers have no key.
        assert server.get("/healthz").text == "OK\n"
        assert not any("secret" in line for line in server.log)


def test_api_keys_from_the_environment(serve: Serve) -> None:
    with serve("--profile", "libero", env={"TENSACT_API_KEYS": "first,second"}) as server:
        for key in ("first", "second"):
            assert server.client(key).infer(OBSERVATION)["actions"].shape == (10, 7)
        with pytest.raises(InvalidStatus) as error:
            server.client("first,second")
        assert error.value.response.status_code == 401


def test_tls(serve: Serve, policy: WebsocketClientPolicy, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    root, chain, key = tmp_path / "root.pem", tmp_path / "chain.pem", tmp_path / "key.pem"
    authority.cert_pem.write_to_path(root)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    issued.private_key_pem.write_to_path(key)
    trust = ssl.create_default_context(cafile=root)
    expected = policy.infer(OBSERVATION)["actions"]
    with serve("--profile", "libero", "--tls-cert", chain, "--tls-key", key, scheme="https") as server:
        with Wire(server.address, trust) as wire:
            same(wire.infer(OBSERVATION), expected)
        assert httpx.get(server.url("/healthz"), verify=trust).text == "OK\n"

        # Nobody else's word is taken for who the server is.
        with pytest.raises(ssl.SSLCertVerificationError):
            Wire(server.address, ssl.create_default_context())
        # And nothing is said in the clear.
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{server.address}/healthz")

        # openpi's client trusts whom the system trusts.
        same(openpi_over_tls(server.port, root, tmp_path / "actions.npy"), expected)


OPENPI_OVER_TLS = """
import sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from observations import Observation
client = WebsocketClientPolicy("wss://127.0.0.1", int(sys.argv[1]))
np.save(sys.argv[2], client.infer(Observation.of("libero", 1).wire())["actions"])
"""


def openpi_over_tls(port: int, root: Path, actions: Path) -> dict[str, np.ndarray]:
    """What openpi's client gets. It reads and writes one TLS connection from two threads, which CPython 3.11 does not guard: of a
    hundred connections, to any server, one hangs or corrupts its process. So it is a process of its own, and may try again."""
    environment = os.environ | {"SSL_CERT_FILE": str(root), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", OPENPI_OVER_TLS, str(port), str(actions)]
    failures = []
    for _ in range(5):
        try:
            subprocess.run(command, env=environment, check=True, timeout=PATIENCE, capture_output=True, text=True)
            return {"actions": np.load(actions)}
        except subprocess.SubprocessError as error:
            failures.append(f"{error}\n{getattr(error, 'stderr', '')}")
    raise AssertionError("\n".join(failures))
