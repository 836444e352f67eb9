"""What an export says about itself: on the screen, in ``verify.json`` and on the model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whippet.report.compare import Comparison
from whippet.report.figures import count, percent, size
from whippet.report.metrics import finite

BOUNDS = {
    "bf16": 1e-3, "fp16": 1e-4, "fp32": 1e-6,
    "f32": 1e-6, "f16": 1e-4, "q8_0": 0.02, "q6_k": 0.05, "q5_k_m": 0.1, "q4_k_m": 0.3, "q4_k_s": 0.35, "q4_0": 0.6,
}  # fmt: skip
"""Largest mean KL to the live model, in nats, by the dtype of the files or the type of a GGUF file: what rounding to it
may cost. Those of GGUF are some ten times what llama.cpp's own table has for an 8B (``docs/design/gguf.md``)."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with the model that was trained."""

    format: str
    """``hf``, ``adapter`` or ``gguf``."""
    out: Path
    dtype: str
    bytes: int
    """Size of all files."""
    parameters: int
    """Numbers in the files: of an adapter, its factors."""
    seconds: float
    merged_onto: str | None
    """The weights that the adapter was added to, ``trained`` or ``16bit``; None where nothing was merged."""
    trained_base: str
    """How the base was held in training: ``fp32``, ``bf16`` or ``nf4``."""
    bases_distance: float | None
    """Relative distance (Frobenius) of the trained base from the unquantised one; None if they are the same or only
    one of them is at hand."""
    against_trained: Comparison | None
    """With ``merged_onto`` 16bit: the merged model against the one that was trained. Stated, not judged."""
    comparison: Comparison
    """The files, read back, against the live model that they were made from."""
    notes: tuple[str, ...] = ()
    """What other programs will not like about them."""

    @property
    def bound_mean_kl(self) -> float:
        """Nats."""
        return BOUNDS[self.dtype]

    @property
    def passed(self) -> bool:
        """Whether the files may be relied on."""
        return self.comparison.mean_kl <= self.bound_mean_kl

    def as_dict(self) -> dict[str, Any]:
        """The content of ``verify.json``: the comparison's figures at its top, of ``out`` the name only."""
        told = asdict(self) | {"out": self.out.name, "passed": self.passed, "bound_mean_kl": self.bound_mean_kl}
        figures: dict[str, Any] = finite(told | told.pop("comparison"))
        return figures

    def __str__(self) -> str:
        lines = [f"{self.format}: {count(self.parameters)} parameters, {size(self.bytes)}, {self.dtype}"]
        if self.merged_onto is not None:
            apart = "" if self.bases_distance is None else f", {percent(self.bases_distance)} from the unquantised one"
            lines.append(f"merged onto: {self.merged_onto} (the base was trained over as {self.trained_base}{apart})")
        if self.against_trained is not None:
            lines.append(f"against the model as trained: {self.against_trained}")
        lines.append(f"read back: {self.comparison}")
        lines.append(f"{'passed' if self.passed else 'FAILED'}: mean KL may be {self.bound_mean_kl:g} nats at most")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
