"""What TT-NN's own host packer makes of numbers that are hard to pack, as `bfp8_b`.

    bfp8_reference.py FILE           writes the fixture of `runtime/src/device/ttnn/bfp8/tests.rs`
    bfp8_reference.py --check FILE   says whether the installed TT-NN still makes the same of its numbers

TT-NN asks for a chip even to pack on the host: `test_bfp8.py` gives it a mock one. The file is a safetensors file: `values`
[rows, columns] in f32, `words` as u32 in the order of the packed tiles, and `unpacked` [rows, columns], what TT-NN reads
back.
"""

import json
import math
import random
import struct
import sys
import tempfile
from pathlib import Path

ROWS, COLUMNS = 70, 90  # neither is a multiple of a tile, nor of a block
BLOCK = 16
TILE_BYTES = 64 + 1024


def f32(value: float) -> float:
    """The nearest f32, as a Python number."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def bits(pattern: int) -> float:
    """The f32 of a bit pattern."""
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


def block(kind: int, rng: random.Random) -> list[float]:
    """16 numbers of one kind."""

    def sign() -> float:
        return rng.choice((-1.0, 1.0))

    scale = 2.0 ** rng.randint(-100, 100)
    match kind:
        case 0:  # what weights look like
            return [rng.gauss(0.0, 0.03) for _ in range(BLOCK)]
        case 1:  # ties of the largest exponent, to even and to odd
            return [sign() * scale * (64.5 + rng.randint(0, 62)) / 64 for _ in range(BLOCK)]
        case 2:  # ties of smaller exponents
            small = [sign() * scale * (rng.randint(0, 62) + 0.5) / 64 for _ in range(BLOCK - 1)]
            return [scale, *small]
        case 3:  # a little more or less than such a tie: the excess is shifted out, or is not
            small = [
                sign() * scale * ((rng.randint(0, 62) + 0.5) / 64 + rng.choice((-1, 1)) * 2.0 ** rng.randint(-30, -10))
                for _ in range(BLOCK - 1)
            ]
            return [scale, *small]
        case 4:  # mantissas that would round up to the next exponent
            return [sign() * scale * (2 - 2.0 ** -rng.randint(6, 23)) for _ in range(BLOCK)]
        case 5:  # all magnitudes beside each other
            return [sign() * math.ldexp(1 + rng.random(), rng.randint(-126, 126)) for _ in range(BLOCK)]
        case 6:  # neighbours of one large number that vanish, or nearly
            return [scale, *(sign() * scale * 2.0 ** -rng.randint(4, 40) for _ in range(BLOCK - 1))]
        case 7:  # zeros, also negative, and nothing else
            return [sign() * 0.0 for _ in range(BLOCK)]
        case 8:  # subnormal numbers, with zeros
            return [bits(rng.getrandbits(1) << 31 | rng.randrange(1 << rng.randint(1, 23))) for _ in range(BLOCK)]
        case 9:  # the smallest normal numbers, whose mantissas have exponents below them
            return [bits(rng.getrandbits(1) << 31 | rng.randint(0, 9) << 23 | rng.getrandbits(23)) for _ in range(BLOCK)]
        case 10:  # infinities beside large and small numbers
            others = [sign() * math.ldexp(1 + rng.random(), rng.randint(100, 127)) for _ in range(BLOCK - 2)]
            return [math.inf, -math.inf, *others]
        case 11:  # the largest numbers
            return [sign() * bits(0x7F7FFFFF - rng.randrange(1 << rng.randint(1, 20))) for _ in range(BLOCK)]
        case 12:  # what is no number, beside numbers
            return [math.nan, *(sign() * math.ldexp(1 + rng.random(), rng.randint(110, 127)) for _ in range(BLOCK - 1))]
        case _:  # any finite pattern
            return [bits(rng.getrandbits(1) << 31 | rng.randrange(0x7F800000)) for _ in range(BLOCK)]


def numbers() -> list[float]:
    """The matrix, row after row; the last block of a row is cut off."""
    rng = random.Random(20240607)
    values: list[float] = []
    kinds = 0
    for _ in range(ROWS):
        row: list[float] = []
        while len(row) < COLUMNS:
            row += block(kinds % 14, rng)
            kinds += 1
        values += row[:COLUMNS]
    return [f32(value) for value in values]


def packed(values: list[float]) -> tuple[bytes, list[float]]:
    """Words and what is read back."""
    import ttnn

    tensor = ttnn.Tensor(values, [1, 1, ROWS, COLUMNS], ttnn.bfloat8_b, ttnn.TILE_LAYOUT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.tensorbin"
        ttnn.dump_tensor(str(path), tensor)
        dumped = path.read_bytes()
    # The file ends with the tensor's own memory.
    words = dumped[-math.ceil(ROWS / 32) * math.ceil(COLUMNS / 32) * TILE_BYTES :]
    flat = tensor.to_list()
    while isinstance(flat[0], list):
        flat = [value for part in flat for value in part]
    return words, flat


def floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def main() -> int:
    check = sys.argv[1:2] == ["--check"]
    path = Path(sys.argv[-1])
    values = numbers()
    words, unpacked = packed(values)
    made = safetensors(
        {
            "values": ("F32", [ROWS, COLUMNS], floats(values)),
            "words": ("U32", [len(words) // 4], words),
            "unpacked": ("F32", [ROWS, COLUMNS], floats(unpacked)),
        }
    )
    if not check:
        path.write_bytes(made)
        return 0
    same = made == path.read_bytes()
    print(f"{path} is {'' if same else 'NOT '}what this TT-NN makes")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
