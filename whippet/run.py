"""A run from its recipe to a trained model, in the order of the walk. Read this page first.

    rows → examples → tokens → weights → packs → batches      train/material.py, from data/ and chat/
    plan                                                      train/plan.py
    batches → hidden states → loss → step → checkpoint        train/loop.py, from model/ and train/objectives/
    checkpoint → adapter, curve, page, card                   train/finish.py; and export.py, when asked

Comes in: a ``Recipe``, or what ``recipe.py`` makes one of. Goes out: ``Run``, which is a folder. Until the plan is
accepted nothing is written; from then on the same call goes on where a run stopped, however it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from whippet import lora
from whippet.chat.messages import Message
from whippet.errors import UsageError, WhippetError
from whippet.export import export
from whippet.infer.model import Model, load
from whippet.infer.prompts import Messages
from whippet.options import Recipe
from whippet.recipe import make_recipe, parse_bytes, read_recipe, write_recipe
from whippet.report.display import Display
from whippet.report.emissions import figures
from whippet.report.exported import ExportReport
from whippet.report.folder import read_run
from whippet.report.meter import Meter
from whippet.report.metrics import Record, read_metrics
from whippet.report.results import results
from whippet.report.trackers import open_tracker
from whippet.train import allocator, finish, folder
from whippet.train.deterministic import deterministic
from whippet.train.evaluate import SamplePrompt, sample_prompts
from whippet.train.job import Job, Stopped
from whippet.train.loop import METRICS, Training
from whippet.train.material import Material, check_disk, gather, settle
from whippet.train.objectives import sft
from whippet.train.plan import existing
from whippet.train.signals import Terminated, terminable
from whippet.train.warm import attention_ready
from whippet.weights.files import read_json, write_json, written_aside
from whippet.weights.load import load_decoder
from whippet.weights.resize import add_rows

SUMMARY = "summary.json"
"""Written last: a run that has it is finished."""
SHORT = {"model": "model.path", "data": "data.sources"}
"""What a plain value under the name of a table means."""
OBJECTIVES = {"sft": sft.loss}


def finetune(
    model: str | Path | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    /,
    *,
    out: str | Path | None = None,
    recipe: Recipe | str | Path | None = None,
    **overrides: Any,
) -> Run:
    """Train, or go on training, and return the finished run.

    ``finetune("model", "data.jsonl", out="runs/x", train={"max_steps": 30}, lora={"r": 8})``; ``model=`` and ``data=``
    may be given by name, as a path or as a table like the others; dotted keys work as ``**{"lora.r": 8}``. ``recipe``
    is a file or a ``Recipe`` to start from. Raises UsageError, DataError and their kin before
    anything is written, ``train.job.Stopped`` after a signal, WhippetError if the machine gives up.
    """
    wanted = settle(_recipe(model, data, out, recipe, overrides))
    place = Path(wanted.out)
    with _stoppable(place, wanted), contextlib.ExitStack() as held:
        display = Display(1)
        if folder.is_run(place):
            held.enter_context(folder.claimed(place))
            before = read_recipe(place / folder.RECIPE)
            folder.check_same(before, wanted, place)
            if before == wanted and (place / SUMMARY).is_file():
                display.note(f"{place}: already finished")
                return Run(place)
            material = _gathered(wanted, display)
        else:
            material = _gathered(wanted, display)
            check_disk(material.plan, place)
            held.enter_context(folder.claimed(place))
        with _disk_failures(place):
            _begin(place, wanted, material)
            return _train(place, wanted, material)


def plan(recipe: Recipe) -> Material:
    """What training would take. Its ``str`` is for people, ``as_dict()`` for JSON; nothing is written.

    Of a hub id only configuration and tokenizer are fetched, into the hub's cache.
    """
    return _usable(recipe, gather(settle(recipe), parse_bytes(recipe.memory.budget, "memory.budget"), weights=False))


class Run:
    """A finished run: its folder, and what can be done with it."""

    def __init__(self, path: str | Path, model: Model | None = None) -> None:
        self.folder = Path(path)
        self._model = model

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def metrics(self) -> list[Record]:
        """Every record of ``metrics.jsonl``."""
        return read_metrics(self.folder / METRICS)

    def summary(self) -> dict[str, Any]:
        """The run's figures, as ``summary.json`` has them."""
        return read_json(self.folder / SUMMARY)

    def model(self) -> Model:
        """The trained model, ready to answer: the one in memory, or loaded from the folder."""
        if self._model is None:
            self._model = load(self.folder)
        return self._model

    def chat(self, messages: str | Messages, **sampling: Any) -> Message:
        """The trained model's reply."""
        return self.model().chat(messages, **sampling)

    def export(self, to: str = "hf", out: str | Path | None = None, **options: Any) -> ExportReport:
        """Write the model for other programs, verified by reading it back; see ``export.py``."""
        return export(self.folder, to=to, out=out, **options)


def _recipe(
    model: str | Path | None,
    data: str | Path | Sequence[str | Path] | None,
    out: str | Path | None,
    start: Recipe | str | Path | None,
    overrides: Mapping[str, Any],
) -> Recipe:
    """The recipe of a call from Python, checked."""
    dotted: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            dotted |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            dotted[SHORT.get(key, key)] = value
    for key, given in (("model.path", model), ("data.sources", data), ("out", out)):
        if given is not None:
            dotted[key] = given
    if isinstance(dotted.get("data.sources"), str | Path):
        dotted["data.sources"] = [dotted["data.sources"]]
    if isinstance(start, str | Path):
        return read_recipe(Path(start), dotted)
    return make_recipe(dataclasses.asdict(start) if start is not None else None, dotted, where="finetune")


def _resume_command(place: Path) -> str:
    return shlex.join(["whippet", "finetune", str(place / folder.RECIPE)])


def _gathered(recipe: Recipe, display: Display) -> Material:
    material = _usable(recipe, gather(recipe, parse_bytes(recipe.memory.budget, "memory.budget")))
    display.note(f"{material}\n")
    return material


def _usable(recipe: Recipe, material: Material) -> Material:
    """Raise UsageError for a key that would say nothing on this device."""
    if recipe.energy.gpu_watts is not None and material.device.type != "cuda":
        raise UsageError(f"energy.gpu_watts = {recipe.energy.gpu_watts:g}: no GPU trains here, leave it out")
    return material


def _begin(place: Path, recipe: Recipe, material: Material) -> None:
    """Make the folder a run: the recipe first, which says that it is one."""
    (place / SUMMARY).unlink(missing_ok=True)
    with written_aside(place / folder.RECIPE) as aside:
        write_recipe(recipe, aside)
    write_json(place / "plan.json", material.plan.as_dict())
    write_json(place / "data.json", material.report.as_dict())
    write_json(place / finish.ENVIRONMENT, finish.environment(material.device))


def _train(place: Path, recipe: Recipe, material: Material) -> Run:
    """Load, adapt, train, finish."""
    started = time.perf_counter()
    full = recipe.train.method == "full"
    meter = Meter(place, material.device, Display(1).note, recipe.energy.gpu_watts)
    with deterministic(recipe.train.deterministic):
        allocator.prepare(material.plan.limits, material.device)
        with attention_ready(material.base_folder, recipe.model, material.plan.examples.longest, material.device):
            decoder = load_decoder(
                material.base_folder,
                base=recipe.model.base,
                compute=recipe.model.compute,
                device=material.device,
                trainable=full,
            )
        add_rows(decoder, material.num_ids, material.tokenizer.vocab_size)
        if not full:
            lora.attach(decoder, recipe.lora, recipe.train.seed)
        model = Model(decoder, material.tokenizer, material.renderer)
        prompts: list[SamplePrompt] = []
        if recipe.train.sample_every:
            prompts = sample_prompts(model, recipe.train.sample_prompts, material.first_examples())
        trackers = [open_tracker(name, place, dataclasses.asdict(recipe)) for name in recipe.train.track]
        job = Job(
            recipe=recipe,
            plan=material.plan,
            model=model,
            objective=OBJECTIVES[recipe.train.objective],
            batches=material.batches,
            eval_batches=material.eval_batches,
            prompts=prompts,
            folder=place,
            data_seal=material.data_seal(),
            resume_command=_resume_command(place),
            trackers=[meter, *trackers],
        )
        training = Training(job, Display(material.plan.steps))
        try:
            training.resume()
            training.run()
        except torch.OutOfMemoryError as error:
            raise WhippetError(
                f"out of memory beside the steps' own micro-batches ({error}); lower memory.budget, and run the same "
                "command: it goes on from the last checkpoint"
            ) from error
        finally:
            for tracker in job.trackers:
                tracker.close()
    decoder.eval()
    _finish(place, recipe, material, model, time.perf_counter() - started)
    return Run(place, model)


def _finish(place: Path, recipe: Recipe, material: Material, model: Model, seconds: float) -> None:
    """Write what the run leaves, the summary last."""
    result = finish.write_result(model, recipe, material.base_folder, place)
    finish.write_reports(model, recipe, material.base_folder, place)
    notes = finish.result_notes(result)
    for note in notes:
        Display(1).note(f"note: {note}")
    write_json(place / SUMMARY, _summary(place, result, seconds) | {"notes": list(notes)})


@contextlib.contextmanager
def _stoppable(place: Path, wanted: Recipe) -> Iterator[None]:
    """A signal that does not wait for a step's end (in preparation, load and results, or the second one) is told as
    the loop tells of others: in one line, with the command to go on."""
    try:
        with terminable():
            yield
    except (KeyboardInterrupt, Terminated) as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        if not (place / folder.RECIPE).is_file():
            told = "stopped before anything was written"
        elif read_recipe(place / folder.RECIPE) != wanted:
            told = f"stopped; the run in {place} is as it was"
        else:
            told = f"stopped. Go on with: {_resume_command(place)}"
        raise Stopped(f"{number.name}: {told}", number) from stop


@contextlib.contextmanager
def _disk_failures(place: Path) -> Iterator[None]:
    """A disk that is full, gone or closed to us is the machine's fault, told in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(existing(place)).free
        raise WhippetError(
            f"{place}: cannot be written: {error} ({free:,} bytes are free). What was complete is intact: make room "
            "and run the same command"
        ) from error


def _summary(place: Path, result: Path, seconds: float) -> dict[str, Any]:
    """The headline figures: losses in nats a trained token, ``seconds`` of this call."""
    run = read_run(place)
    told = results(run.records)
    return {
        "folder": str(place),
        "result": str(result),
        "steps": told.steps,
        "tokens": told.tokens,
        "loss_first": told.loss_first,
        "loss_last": told.loss_last,
        "eval_loss_first": told.eval_first,
        "eval_loss_last": told.eval_last,
        "tokens_per_s": told.tokens_per_s,
        "peak_bytes": told.peak_bytes,
        "seconds": round(seconds, 3),
    } | figures(run.energy, run.table("energy"))
