"""Cluster descriptors of machines that are not here: what TT-Metal reads instead of looking for chips.

`python cluster_descriptor.py MACHINE FILE` writes one. Fields and numbers follow the descriptors that Tenstorrent's tools
write on such machines.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Link:
    """Two chips, and the Ethernet channels that join them as (channel of `a`, channel of `b`)."""

    a: int
    b: int
    channels: list[tuple[int, int]]


@dataclass(frozen=True)
class Machine:
    """Chips, and what joins them."""

    arch: str
    card: str
    # What its board number begins with: tells TT-Metal which card it is.
    card_code: int
    # The chips of each card; the first one has PCIe.
    cards: list[list[int]]
    links: list[Link]
    # Tensix columns (Blackhole) or rows (Wormhole) that are fused off, one bit each.
    tensix_off: int
    ethernet_off: int = 0
    pcie_off: int = 0
    # Wormhole: (x, y, rack, shelf) of each chip.
    coordinates: dict[int, list[int]] = field(default_factory=dict)
    # Blackhole: a place per chip, because chips that share one are refused as one chip. Wormhole's are found by TT-Metal.
    places: dict[int, int] = field(default_factory=dict)

    def descriptor(self) -> dict[str, object]:
        """The content of the file."""
        chips = sorted(chip for card in self.cards for chip in card)
        harvesting = {
            "noc_translation": True,
            "harvest_mask": self.tensix_off,
            "dram_harvesting_mask": 0,
            "eth_harvesting_mask": self.ethernet_off,
            "pcie_harvesting_mask": self.pcie_off,
            "l2cpu_harvesting_mask": 0,
        }
        written: dict[str, object] = {
            "arch": {chip: self.arch for chip in chips},
            "chips": self.coordinates,
            "chip_unique_ids": {chip: 1000 + chip for chip in chips},
            "ethernet_connections": [
                [{"chip": link.a, "chan": from_a}, {"chip": link.b, "chan": from_b}]
                for link in self.links
                for from_a, from_b in link.channels
            ],
            "ethernet_connections_to_remote_devices": [],
            "chips_with_mmio": [{card[0]: number} for number, card in enumerate(self.cards)],
            "io_device_type": "PCIe",
            "harvesting": {chip: harvesting for chip in chips},
            "boards": [
                [{"board_id": (self.card_code << 36) + number}, {"board_type": self.card}, {"chips": card}]
                for number, card in enumerate(self.cards)
            ],
        }
        if self.places:
            written["asic_locations"] = self.places
        return written


def p150s(rows: int, columns: int, tensix_off: int = 0) -> Machine:
    """p150 cards as a mesh, numbered row by row, with two links between neighbours."""
    chips = range(rows * columns)
    east = [Link(chip, chip + 1, [(4, 7), (6, 5)]) for chip in chips if (chip + 1) % columns]
    south = [Link(chip, chip + columns, [(8, 11), (10, 9)]) for chip in chips if chip + columns in chips]
    return Machine(
        arch="blackhole",
        card="p150",
        card_code=0x40,
        cards=[[chip] for chip in chips],
        links=east + south,
        tensix_off=tensix_off,
        ethernet_off=0b1_0010_0000,
        pcie_off=0b10,
        places={chip: chip for chip in chips},
    )


WORMHOLE_ROWS_OFF = 0b10_0010_0000  # an n300 chip uses eight of its ten rows
ON_N300 = [(8, 0), (9, 1)]


def n300() -> Machine:
    """One n300 card: chip 1 is reached through chip 0."""
    return Machine(
        arch="wormhole_b0",
        card="n300",
        card_code=0x14,
        cards=[[0, 1]],
        links=[Link(0, 1, ON_N300)],
        tensix_off=WORMHOLE_ROWS_OFF,
        coordinates={0: [0, 0, 0, 0], 1: [1, 0, 0, 0]},
    )


def t3000() -> Machine:
    """Four n300 cards as a mesh of 2 × 4, where chip `n + 4` shares the card of chip `n`:

    ```
    4 0 2 6
    5 1 3 7
    ```
    """
    mesh = [[4, 0, 2, 6], [5, 1, 3, 7]]
    return Machine(
        arch="wormhole_b0",
        card="n300",
        card_code=0x14,
        cards=[[chip, chip + 4] for chip in range(4)],
        links=[
            *(Link(chip, chip + 4, ON_N300) for chip in range(4)),
            Link(0, 1, [(14, 14), (15, 15)]),
            Link(2, 3, [(14, 14), (15, 15)]),
            Link(0, 2, [(6, 6), (7, 7)]),
            Link(1, 3, [(0, 0), (1, 1)]),
            Link(4, 5, [(6, 6), (7, 7)]),
            Link(6, 7, [(6, 6), (7, 7)]),
        ],
        tensix_off=WORMHOLE_ROWS_OFF,
        coordinates={chip: [x, y, 0, 0] for y, row in enumerate(mesh) for x, chip in enumerate(row)},
    )


# Named as Tensact names its boards; `p150a-120` is a p150 with two columns of Tensix cores fused off.
MACHINES = {
    "p150a": p150s(1, 1),
    "p150a-120": p150s(1, 1, tensix_off=0b1100_0000),
    "quietbox-bh": p150s(2, 2),
    "loudbox-bh": p150s(2, 4),
    "n300": n300(),
    "t3000": t3000(),
}


def write(machine: str, file: Path) -> Path:
    """Writes the descriptor of one of `MACHINES`."""
    file.write_text(yaml.safe_dump(MACHINES[machine].descriptor(), sort_keys=False))
    return file


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MACHINES:
        sys.exit(f"usage: cluster_descriptor.py {{{','.join(MACHINES)}}} FILE")
    write(sys.argv[1], Path(sys.argv[2]))
