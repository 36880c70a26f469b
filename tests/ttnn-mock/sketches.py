"""Small programs for the replay's own tests: one that makes every call, and copies of it that are broken on purpose."""

from __future__ import annotations

from typing import Any

# Rows and columns of the machines.
MESHES = {"p150a": (1, 1), "p150a-120": (1, 1), "quietbox-bh": (2, 2), "n300": (1, 2), "t3000": (2, 4)}

EXACT = {"fidelity": "hifi4", "fp32_accumulate": True, "packer_l1": False}
FAST = {"fidelity": "lofi", "fp32_accumulate": True, "packer_l1": True}


class Sketch:
    """A program that is being written down."""

    def __init__(self, name: str, chip: int) -> None:
        self.values: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.written = {
            "name": name,
            "chip": chip,
            "values": self.values,
            "segments": [{"name": "all", "calls": self.calls}],
        }

    def value(self, origin: str, shape: list[int], dtype: str = "bf16", layout: str = "tile", memory: str = "dram") -> int:
        """Declares a tensor."""
        number = len(self.values)
        spec = {"shape": shape, "dtype": dtype, "layout": layout, "memory": memory}
        self.values.append({"id": number, "name": f"{origin} {number}", "origin": origin, **spec})
        return number

    def weight(self, *shape: int, **spec: str) -> int:
        return self.value("weight", list(shape), **spec)

    def input(self, *shape: int, **spec: str) -> int:
        return self.value("input", list(shape), **spec)

    def made(self, *shape: int, **spec: str) -> int:
        return self.value("call", list(shape), **spec)

    def call(self, op: str, *out: int, frees: tuple[int, ...] = (), **arguments: Any) -> int:
        """Writes down a call; gives its first result, if it has one."""
        self.calls.append({"op": op, **arguments, "out": list(out), "frees": list(frees)})
        return out[0] if out else -1


def export(machine: str, *sketches: Sketch, sockets: tuple[tuple[int, int], ...] = ()) -> dict[str, Any]:
    """The file that holds these programs for a machine."""
    rows, columns = MESHES[machine]
    return {
        "format": 1,
        "ttnn": "0.69",
        "board": machine,
        "arch": "wormhole" if machine in ("n300", "t3000") else "blackhole",
        "chips": list(range(rows * columns)),
        "mesh": [rows, columns],
        "sockets": [{"id": number, "from_chip": a, "to_chip": b} for number, (a, b) in enumerate(sockets)],
        "programs": [sketch.written for sketch in sketches],
    }


def one_layer(chip: int = 0) -> Sketch:
    """A small transformer layer that makes every call but those between chips: 64 tokens, two heads of 64."""
    tokens, width, heads = 64, 128, 2
    s = Sketch("one layer", chip)
    ids = s.input(1, 1, 1, tokens, dtype="u32", layout="row_major")
    rows = s.call("embedding", s.made(1, 1, tokens, width), ids=ids, table=s.weight(1, 1, 256, width, layout="row_major"))
    cos = s.input(1, 1, tokens, 64)
    sin = s.input(1, 1, tokens, 64)
    mask = s.call("add", s.made(1, 1, tokens, 2 * tokens), a=s.weight(1, 1, tokens, 2 * tokens), b=s.input(1, 1, 1, 2 * tokens))
    scale, shift = s.weight(1, 1, 1, width), s.weight(1, 1, 1, width)

    normed = s.call(
        "layer_norm", s.made(1, 1, tokens, width), x=rows, weight=scale, bias=shift, epsilon=1e-6, compute=EXACT
    )
    qkv = s.call(
        "linear",
        s.made(1, 1, tokens, (heads + 2) * 64),
        x=normed,
        weight=s.weight(1, 1, width, (heads + 2) * 64, dtype="bfp8_b"),
        bias=None,
        activation=None,
        compute=FAST,
        frees=(normed,),
    )
    q, k, v = s.made(1, heads, tokens, 64), s.made(1, 1, tokens, 64), s.made(1, 1, tokens, 64)
    s.call("split_heads", q, k, v, x=qkv, heads=heads, kv_heads=1, frees=(qkv,))
    q = s.call("rotary", s.made(1, heads, tokens, 64), x=q, cos=cos, sin=sin, frees=(q,))
    cache = s.input(1, 1, tokens, 64)
    keys = s.call("concat", s.made(1, 1, 2 * tokens, 64), parts=[cache, k], dim=2)
    values = s.call("concat", s.made(1, 1, 2 * tokens, 64), parts=[cache, v], dim=2)
    attended = s.call(
        "attention",
        s.made(1, heads, tokens, 64),
        q=q,
        k=keys,
        v=values,
        mask=mask,
        scale=0.125,
        q_chunk=64,
        k_chunk=128,
        compute=EXACT,
        frees=(q, keys, values),
    )
    joined = s.call("concat_heads", s.made(1, 1, tokens, heads * 64, memory="l1"), x=attended, frees=(attended,))
    rows = s.call("add", s.made(1, 1, tokens, width, dtype="f32"), a=rows, b=joined, frees=(joined,))
    rows = s.call("typecast", s.made(1, 1, tokens, width), x=rows, frees=(rows,))
    normed = s.call("rms_norm", s.made(1, 1, tokens, width), x=rows, weight=None, epsilon=1e-6, compute=EXACT)
    gate, up = (
        s.call(
            "linear",
            s.made(1, 1, tokens, 256, memory="l1"),
            x=normed,
            weight=s.weight(1, 1, width, 256, dtype="bfp8_b"),
            bias=s.weight(1, 1, 1, 256),
            activation=activation,
            compute=FAST,
        )
        for activation in ("gelu", None)
    )
    both = s.call("multiply", s.made(1, 1, tokens, 256, memory="l1"), a=gate, b=up, activation="silu", frees=(gate, up))
    both = s.call("activate", s.made(1, 1, tokens, 256, memory="l1"), x=both, activation="silu", frees=(both,))
    half = s.call("slice", s.made(1, 1, tokens, width, memory="l1"), x=both, begin=[0, 0, 0, 128], end=[1, 1, tokens, 256])
    half = s.call("activate", s.made(1, 1, tokens, width, memory="l1"), x=half, activation="gelu", frees=(half,))
    half = s.call("to_memory", s.made(1, 1, tokens, width), x=half, frees=(half,))
    half = s.call("multiply_scalar", s.made(1, 1, tokens, width), x=half, value=-0.1, frees=(half,))
    s.call("copy", into=s.value("buffer", [1, 1, tokens, width]), frees=(half,), **{"from": half})
    return s


def sender(chip: int, socket: int, dtype: str = "bf16") -> Sketch:
    """Sends the keys and values of a layer."""
    s = Sketch("sender", chip)
    s.call("send", value=s.input(1, 1, 832, 512, dtype=dtype), socket=socket)
    return s


def receiver(chip: int, socket: int) -> Sketch:
    """Takes what `sender` sends."""
    s = Sketch("receiver", chip)
    s.call("receive", into=s.value("buffer", [1, 1, 832, 512]), socket=socket)
    return s
