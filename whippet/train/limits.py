"""How much of a step is held in memory at once. ``choose.py`` chooses; the learner makes it smaller if it must."""

from __future__ import annotations

from dataclasses import asdict, dataclass

LEAST_CHUNK_ROWS, LEAST_TILE = 64, 4096


@dataclass(frozen=True)
class Limits:
    """How much is held in memory at once; the result does not depend on it."""

    micro_tokens: int
    """Tokens of a micro-batch; a longer single document goes through alone."""
    recompute: int
    """Leading layers whose activations are computed again in the backward pass."""
    chunk_rows: int
    """Rows of the output matrix's product that exist at once."""
    park: int = 0
    """Leading layers, of those that are computed again, what of which is kept waits in the host's memory."""
    halves: int = 0
    """The last layers, of those that are computed again, of which the MLP half alone is."""
    tile: int = 0
    """Tokens of a layer that go through its MLP half at once, where that is computed again; 0: all."""
    entire: int = 0
    """Layers, evenly spread among the halves that are parked, which park all that they would keep, and compute nothing
    again."""

    def as_dict(self) -> dict[str, int]:
        """For JSON; ``Limits(**d)`` makes it again."""
        return asdict(self)
