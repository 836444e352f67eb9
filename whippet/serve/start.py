"""A model with its adapters as a ``Served``: the parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from whippet.errors import UsageError
from whippet.infer.adapters import load_beside
from whippet.infer.batching import Batcher
from whippet.infer.model import Model
from whippet.infer.worker import Worker
from whippet.serve.served import Served, check_names


def serve_model(
    model: Model, *, name: str, adapters: Mapping[str, str] | None = None, max_rows: int = 64, max_waiting: int = 256
) -> Served:
    """``model`` behind a worker of its own. adapters: folders in PEFT's layout by the name that they are served as.

    Raises UsageError or ModelError for an adapter that does not fit, and for names that are the same.
    """
    folders = {adapter: Path(folder) for adapter, folder in (adapters or {}).items()}
    check_names(name, list(folders))
    if max_rows < 1:
        raise UsageError(f"max_rows = {max_rows}: must be 1 or more")
    names = load_beside(model.decoder, folders) if folders else []
    worker = Worker(
        Batcher(model.decoder, max_rows=max_rows, adapters=names), max_rows=max_rows, max_waiting=max_waiting
    )
    return Served(model, worker, name=name, adapters=names)
