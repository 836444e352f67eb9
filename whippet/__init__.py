"""whippet: fine-tune, run, check and ship open language models on the machine that you have.

``import whippet`` imports nothing heavy; torch comes with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "finetune", "load"]

if TYPE_CHECKING:
    from whippet.infer.model import load
    from whippet.run import finetune


def __getattr__(name: str) -> Any:
    if name == "load":
        from whippet.infer.model import load

        return load
    if name == "finetune":
        from whippet.run import finetune

        return finetune
    raise AttributeError(f"module 'whippet' has no attribute {name!r}")
