"""The calls of exported programs as calls of TT-NN's Python library.

Each function is one operation. Its keyword arguments are those of the file, with tensors in place of their numbers;
`out` holds what the program declares of the results, which TT-NN is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ttnn

from program import Spec

Tensor = ttnn.Tensor
Tensors = list[Tensor]

DTYPES = {
    "bf16": ttnn.bfloat16,
    "bfp8_b": ttnn.bfloat8_b,
    "f32": ttnn.float32,
    "u32": ttnn.uint32,
}
LAYOUTS = {"tile": ttnn.TILE_LAYOUT, "row_major": ttnn.ROW_MAJOR_LAYOUT}
MEMORIES = {"dram": ttnn.DRAM_MEMORY_CONFIG, "l1": ttnn.L1_MEMORY_CONFIG}
# The names that TT-NN's linear and its unary functions know.
ACTIVATIONS = {"gelu": "gelu_tanh", "silu": "silu"}
UNARY = {"gelu": ttnn.UnaryOpType.GELU_TANH, "silu": ttnn.UnaryOpType.SILU}
FIDELITIES = {
    "lofi": ttnn.MathFidelity.LoFi,
    "hifi2": ttnn.MathFidelity.HiFi2,
    "hifi3": ttnn.MathFidelity.HiFi3,
    "hifi4": ttnn.MathFidelity.HiFi4,
}


@dataclass(frozen=True)
class Chip:
    """A mock chip, and the sockets that begin or end on it, by their numbers."""

    device: Any
    senders: dict[int, Any]
    receivers: dict[int, Any]

    def grid(self) -> tuple[int, int]:
        """Columns and rows of cores."""
        size = self.device.compute_with_storage_grid_size()
        return size.x, size.y

    def empty(self, spec: Spec) -> Tensor:
        """A tensor that nobody has written."""
        return ttnn.empty(
            spec.shape,
            dtype=DTYPES[spec.dtype],
            layout=LAYOUTS[spec.layout],
            device=self.device,
            memory_config=MEMORIES[spec.memory],
        )

    def compute(self, fidelity: str, fp32_accumulate: bool, packer_l1: bool) -> Any:
        """How exactly the matrix engine works."""
        return ttnn.init_device_compute_kernel_config(
            self.device.arch(),
            math_fidelity=FIDELITIES[fidelity],
            math_approx_mode=False,
            fp32_dest_acc_en=fp32_accumulate,
            packer_l1_acc=packer_l1,
        )


@dataclass(frozen=True)
class Operation:
    """How a call is made, and which of its arguments are tensors."""

    run: Callable[..., Tensors]
    tensors: tuple[str, ...]


OPERATIONS: dict[str, Operation] = {}


def operation(*tensors: str) -> Callable[[Callable[..., Tensors]], Callable[..., Tensors]]:
    """Enters a function under its name; `tensors` are the arguments that are tensors, lists of them or none."""

    def enter(run: Callable[..., Tensors]) -> Callable[..., Tensors]:
        OPERATIONS[run.__name__] = Operation(run, tensors)
        return run

    return enter


@operation("x", "weight", "bias")
def linear(chip: Chip, out: list[Spec], x, weight, bias, activation, compute) -> Tensors:
    # With a core grid TT-NN applies the activation within the product, and never takes its slow one-core-per-tile product.
    columns, rows = chip.grid()
    return [
        ttnn.linear(
            x,
            weight,
            bias=bias,
            activation=activation and ACTIVATIONS[activation],
            dtype=DTYPES[out[0].dtype],
            memory_config=MEMORIES[out[0].memory],
            compute_kernel_config=chip.compute(**compute),
            core_grid=ttnn.CoreGrid(x=columns, y=rows),
        )
    ]


@operation("x", "weight", "bias")
def layer_norm(chip: Chip, out: list[Spec], x, weight, bias, epsilon, compute) -> Tensors:
    return [
        ttnn.layer_norm(
            x,
            epsilon=epsilon,
            weight=weight,
            bias=bias,
            memory_config=MEMORIES[out[0].memory],
            compute_kernel_config=chip.compute(**compute),
        )
    ]


@operation("x", "weight")
def rms_norm(chip: Chip, out: list[Spec], x, weight, epsilon, compute) -> Tensors:
    return [
        ttnn.rms_norm(
            x,
            epsilon=epsilon,
            weight=weight,
            memory_config=MEMORIES[out[0].memory],
            compute_kernel_config=chip.compute(**compute),
        )
    ]


@operation("a", "b")
def add(chip: Chip, out: list[Spec], a, b) -> Tensors:
    return [ttnn.add(a, b, dtype=DTYPES[out[0].dtype], memory_config=MEMORIES[out[0].memory])]


@operation("a", "b")
def multiply(chip: Chip, out: list[Spec], a, b, activation) -> Tensors:
    return [
        ttnn.multiply(
            a,
            b,
            dtype=DTYPES[out[0].dtype],
            memory_config=MEMORIES[out[0].memory],
            input_tensor_a_activations=[UNARY[activation]] if activation else [],
        )
    ]


@operation("x")
def multiply_scalar(chip: Chip, out: list[Spec], x, value) -> Tensors:
    return [ttnn.multiply(x, value, dtype=DTYPES[out[0].dtype], memory_config=MEMORIES[out[0].memory])]


@operation("x")
def activate(chip: Chip, out: list[Spec], x, activation) -> Tensors:
    memory = MEMORIES[out[0].memory]
    if activation == "gelu":
        return [ttnn.gelu(x, variant=ttnn.GeluVariant.Tanh, memory_config=memory)]
    return [{"silu": ttnn.silu}[activation](x, memory_config=memory)]


@operation("ids", "table")
def embedding(chip: Chip, out: list[Spec], ids, table) -> Tensors:
    rows = ttnn.embedding(
        ids,
        table,
        layout=LAYOUTS[out[0].layout],
        dtype=DTYPES[out[0].dtype],
        memory_config=MEMORIES[out[0].memory],
    )
    # TT-NN gives [1, rows, width]; the fourth dimension is a view.
    return [ttnn.unsqueeze_to_4D(rows)]


@operation("x", "cos", "sin")
def rotary(chip: Chip, out: list[Spec], x, cos, sin) -> Tensors:
    return [ttnn.experimental.rotary_embedding(x, cos, sin, memory_config=MEMORIES[out[0].memory])]


@operation("x")
def split_heads(chip: Chip, out: list[Spec], x, heads, kv_heads) -> Tensors:
    return list(
        ttnn.experimental.nlp_create_qkv_heads(
            x,
            num_heads=heads,
            num_kv_heads=kv_heads,
            transpose_k_heads=False,
            memory_config=MEMORIES[out[0].memory],
        )
    )


@operation("x")
def concat_heads(chip: Chip, out: list[Spec], x) -> Tensors:
    return [ttnn.experimental.nlp_concat_heads(x, memory_config=MEMORIES[out[0].memory])]


@operation("q", "k", "v", "mask")
def attention(chip: Chip, out: list[Spec], q, k, v, mask, scale, q_chunk, k_chunk, compute) -> Tensors:
    chunks = ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=chip.grid(),
        q_chunk_size=q_chunk,
        k_chunk_size=k_chunk,
        exp_approx_mode=False,
    )
    return [
        ttnn.transformer.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=False,
            scale=scale,
            memory_config=MEMORIES[out[0].memory],
            program_config=chunks,
            compute_kernel_config=chip.compute(**compute),
        )
    ]


@operation("parts")
def concat(chip: Chip, out: list[Spec], parts, dim) -> Tensors:
    return [ttnn.concat(parts, dim=dim, memory_config=MEMORIES[out[0].memory])]


@operation("x")
def slice(chip: Chip, out: list[Spec], x, begin, end) -> Tensors:
    return [ttnn.slice(x, begin, end, memory_config=MEMORIES[out[0].memory])]


@operation("x")
def typecast(chip: Chip, out: list[Spec], x) -> Tensors:
    return [ttnn.typecast(x, DTYPES[out[0].dtype], memory_config=MEMORIES[out[0].memory])]


@operation("x")
def to_memory(chip: Chip, out: list[Spec], x) -> Tensors:
    return [ttnn.to_memory_config(x, MEMORIES[out[0].memory])]


@operation("source", "into")
def copy(chip: Chip, out: list[Spec], source, into) -> Tensors:
    ttnn.copy(source, into)
    return []


@operation("value")
def send(chip: Chip, out: list[Spec], value, socket) -> Tensors:
    ttnn.experimental.send_async(value, chip.senders[socket])
    return []


@operation("into")
def receive(chip: Chip, out: list[Spec], into, socket) -> Tensors:
    ttnn.experimental.recv_async(into, chip.receivers[socket])
    return []
