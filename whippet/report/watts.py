"""What chips take where nothing measures it: facts of data sheets.

Comes in: a GPU's name, as its driver gives it. Goes out: its highest power in watts.
"""

from __future__ import annotations

GPU_WATTS = {
    "B200": 1000, "H200": 700, "H200 NVL": 600, "H100": 700, "H100 PCIe": 350, "H100 NVL": 400, "GH200": 900,
    "A100-SXM": 400, "A100-PCIE": 250, "A100 80GB PCIe": 300, "L40S": 350, "L40": 300, "L4": 72, "A10G": 300,
    "A10": 150, "RTX A6000": 300, "RTX 6000 Ada": 300, "RTX 5090": 575, "RTX 4090": 450, "RTX 4080": 320,
    "RTX 3090": 350, "V100-SXM": 300, "V100-PCIE": 250, "T4": 70,
}  # fmt: skip
"""Board power by NVIDIA's data sheets (https://www.nvidia.com/en-us/data-center/ and /en-us/geforce/graphics-cards/),
under a part of the name."""
UNLIKE = ("Laptop", "Max-Q", "MIG")
"""Chips of these have a name of the table and another power."""
CPU_CORE_WATTS = 5.0
"""A busy core. Data sheets of server chips divide to 3.8 (EPYC 9654: 360 W, 96 cores), 4.4 (EPYC 7763: 280 W, 64) and
6.3 (Xeon 8480+: 350 W, 56)."""


def gpu_watts(name: str) -> float | None:
    """The board's highest power; None for a chip that is not in the table."""
    if any(part in name for part in UNLIKE):
        return None
    words = name.replace("NVIDIA ", "")
    known = max((part for part in GPU_WATTS if f" {part}" in f" {words}" and _ends(words, part)), key=len, default=None)
    return float(GPU_WATTS[known]) if known is not None else None


def _ends(name: str, part: str) -> bool:
    """Whether ``part`` is not the beginning of a longer number or name: no L4 in L40, no A10 in A100."""
    after = f" {name}".split(f" {part}", 1)[1][:1]
    return not after.isalnum() or part.endswith("SXM")
