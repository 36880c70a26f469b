"""A stand-in for SFPI, the RISC-V compiler that TT-Metal builds kernels with.

Mock chips run no kernel, but TT-Metal still asks for each one to be compiled and reads the result. The stand-in answers
every call with the same empty program. `python stub_toolchain.py FOLDER` writes it.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

# TT-Metal looks for one of these names under `runtime/sfpi/compiler/bin`; `"$0"` finds the program beside the folder.
COMPILER = """#!/bin/sh
# Not a compiler: writes the same empty program, whatever it is given.
while [ $# -gt 0 ]; do
    case "$1" in
        --version) echo "riscv-tt-elf-g++ (stand-in) 15.1.0"; exit 0 ;;
        -o) output=$2; shift ;;
        -MF) dependencies=$2; shift ;;
        *.cc | *.cpp) source=$1 ;;
    esac
    shift
done
[ -z "$output" ] || cp "${0%/*}/../../empty.elf" "$output"
[ -z "$dependencies" ] || echo "${output%.*}.o: $source" > "$dependencies"
"""

# Where the program is loaded; any address in a core's memory will do.
BASE = 0x6000


@dataclass
class Section:
    """A section of an ELF file; the fields are those of its header."""

    name: str
    kind: int
    content: bytes
    flags: int = 0
    address: int = 0
    link: int = 0
    info: int = 0
    entry_size: int = 0
    alignment: int = 1
    offset: int = 0


def empty_program() -> bytes:
    """A 32-bit RISC-V executable that returns at once, with what TT-Metal reads: segment, symbols and relocations."""
    jump, ret, nop = 0x0040006F, 0x00008067, 0x00000013
    text = struct.pack("<4I", jump, ret, nop, nop)
    symbol_names = b"\0_start\0__fw_export_stub\0"
    # Name, value, size, kind (global), visibility, section.
    symbols = b"".join(
        struct.pack("<IIIBBH", *symbol)
        for symbol in [(0, 0, 0, 0, 0, 0), (1, BASE, 16, 0x10, 0, 1), (8, BASE + 4, 16, 0x10, 0, 1)]
    )
    jump_to_export = struct.pack("<IIi", BASE, (2 << 8) | 17, 0)  # R_RISCV_JAL to symbol 2
    sections = [
        Section("", 0, b"", alignment=0),
        Section(".text", 1, text, flags=6, address=BASE, alignment=16),
        Section(".rela.text", 4, jump_to_export, flags=0x40, link=3, info=1, entry_size=12, alignment=4),
        Section(".symtab", 2, symbols, link=4, info=1, entry_size=16, alignment=4),
        Section(".strtab", 3, symbol_names),
        Section(".shstrtab", 3, b""),
    ]
    return linked(sections, loaded=sections[1])


def linked(sections: list[Section], loaded: Section) -> bytes:
    """The file of `sections`, the last of which takes their names; `loaded` is its only segment."""
    names = b""
    name_at = []
    for section in sections:
        name_at.append(len(names))
        names += section.name.encode() + b"\0"
    sections[-1].content = names

    file_header, program_header = 52, 32
    body = bytearray(file_header + program_header)
    for section in sections[1:]:
        body += bytes(-len(body) % 16)
        section.offset = len(body)
        body += section.content
    body += bytes(-len(body) % 4)
    headers_at = len(body)
    for section, name in zip(sections, name_at):
        body += struct.pack(
            "<10I",
            name,
            section.kind,
            section.flags,
            section.address,
            section.offset,
            len(section.content),
            section.link,
            section.info,
            section.alignment,
            section.entry_size,
        )

    executable, riscv, version, no_flags = 2, 243, 1, 0
    body[:file_header] = b"\x7fELF\1\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIIIIIHHHHHH",
        executable,
        riscv,
        version,
        BASE,
        file_header,
        headers_at,
        no_flags,
        file_header,
        program_header,
        1,
        40,
        len(sections),
        len(sections) - 1,
    )
    size = len(loaded.content)
    load, read_and_run = 1, 5
    body[file_header : file_header + program_header] = struct.pack(
        "<8I", load, loaded.offset, BASE, BASE, size, size, read_and_run, 16
    )
    return bytes(body)


def write(folder: Path) -> None:
    """Writes the stand-in to `folder`, which is `runtime/sfpi` of a TT-Metal installation."""
    compiler = folder / "compiler/bin/riscv-tt-elf-g++"
    compiler.parent.mkdir(parents=True, exist_ok=True)
    (folder / "include").mkdir(exist_ok=True)
    (folder / "empty.elf").write_bytes(empty_program())
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: stub_toolchain.py FOLDER")
    write(Path(sys.argv[1]))
