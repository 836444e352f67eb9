"""Whole runs that meet trouble: numbers that are not finite, memory that runs out, signals; and that nothing else
moves the result."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_train import losses, settings, write_records
from safetensors.torch import load_file

from whippet import run as runs
from whippet.cli.main import main
from whippet.data.batches import Batch, Step
from whippet.errors import UsageError, WhippetError
from whippet.model.decoder import Decoder
from whippet.run import finetune
from whippet.train import checkpoint
from whippet.train.job import Stopped
from whippet.train.learner import Learner, Learnt
from whippet.train.micro import micro_batches
from whippet.train.objectives import sft
from whippet.weights.load import load_decoder


def test_fp8_is_refused_in_one_line_where_nothing_computes_in_it(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(compute: str = "auto", base: str = "fp8") -> str:
        with pytest.raises(UsageError) as caught:
            tables = settings(model={"base": base, "compute": compute})
            finetune(tiny_checkpoint, data, out=tmp_path / "run", **tables)
        assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)
        return str(caught.value)

    assert "compute capability 9.0 (Hopper) or later, and the device is cpu; use" in refused()
    assert 'model.compute = "fp8" needs an NVIDIA GPU of' in refused("fp8", "nf4")
    assert "model.compute = 'fp8': must be another than \"fp8\" unless adapters" in refused("fp8", "bf16")
    monkeypatch.setattr("whippet.kernels.fp8.supported", lambda device: True)
    assert 'needs model.compute = "bf16", met float32' in refused()
    monkeypatch.setattr("whippet.kernels.fp8.ALIGNED", 128)
    assert "multiples of 128, and q_proj is [64, 64]; use" in refused("bf16")


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tiny_checkpoint, data, out=tmp_path_factory.mktemp("runs") / "a", **settings()).folder


class Watched:
    """``trouble`` is called with the number of the step and its loss, in the middle of each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[int, sft.Loss], sft.Loss]) -> None:
        self.step, self.trouble = 0, trouble
        real = Learner.learn

        def learn(learner: Learner, step: Step, rate: float, seed: int) -> Learnt:
            self.step += 1
            return real(learner, step, rate, seed)

        monkeypatch.setattr(Learner, "learn", learn)
        monkeypatch.setitem(runs.OBJECTIVES, "sft", self)

    def __call__(self, decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        return self.trouble(self.step, sft.loss(decoder, batch, chunk_rows))


def not_finite_at(*steps: int) -> Callable[[int, sft.Loss], sft.Loss]:
    def trouble(step: int, loss: sft.Loss) -> sft.Loss:
        return sft.Loss(loss.loss_sum * float("nan"), loss.correct, loss.num_trained) if step in steps else loss

    return trouble


def bad_steps(out: Path) -> list[int]:
    """The steps of bad-steps.jsonl, each with the rows of its documents."""
    found = [json.loads(line) for line in (out / "bad-steps.jsonl").read_text().splitlines()]
    assert all(
        bad["rows"] and all(row["text"] and row["ids"] and row["trained"] for row in bad["rows"]) for bad in found
    )
    return [bad["step"] for bad in found]


def leaves_no_result(out: Path) -> None:
    """Neither an adapter, a card nor a summary; and what there is of weights is finite."""
    assert not {"adapter", "README.md", "report.html", "summary.json"} & {path.name for path in out.iterdir()}
    for path in out.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"{path}: {name}"


def test_three_bad_steps_in_a_row_stop_the_run(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Watched(monkeypatch, not_finite_at(2, 4, 5, 6))
    out = tmp_path / "a"
    with pytest.raises(WhippetError, match=r"3 steps in a row were not finite.*bad-steps\.jsonl") as caught:
        finetune(tiny_checkpoint, data, out=out, **settings(train={"save_every": 1}))
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert bad_steps(out) == [2, 4, 5, 6]
    assert [record["loss"] is None for record in losses(out)] == [False, True, False, True, True, True]
    leaves_no_result(out)
    assert checkpoint.steps(out / "checkpoints") == [4, 5]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_too_short_for_three_bad_steps_is_no_success(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    def poisoned(*args: Any, **named: Any) -> Decoder:
        decoder = load_decoder(*args, **named)
        with torch.no_grad():
            decoder.layers[0].down.dense[1, 2] = float("nan")
        return decoder

    monkeypatch.setattr(runs, "load_decoder", poisoned)
    out = tmp_path / "a"
    for _ in range(2):  # the same command again says the same
        with pytest.raises(WhippetError, match=r"not one step was finite.*bad-steps\.jsonl") as caught:
            finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": steps}))
        assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
        assert bad_steps(out) == list(range(1, steps + 1))
        leaves_no_result(out)


def test_a_run_that_ends_in_a_bad_step_is_no_success_and_goes_on(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    Watched(monkeypatch, not_finite_at(2, 4))
    with pytest.raises(WhippetError, match=r"step 4 of 4: the last step was not finite.*raise train\.max_steps"):
        finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 4}))
    assert bad_steps(out) == [2, 4]
    leaves_no_result(out)
    assert finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 5})).summary()["steps"] == 5


def test_weights_that_overflow_are_not_saved_and_nothing_is_promised(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    with pytest.raises(WhippetError, match=r"the (weight|optimiser state) layers\.0\.q_proj\.a.*holds NaN") as caught:
        finetune(tiny_checkpoint, data, out=out, **settings(train={"learning_rate": 1e38, "save_every": 1}))
    assert "there is no earlier checkpoint" in str(caught.value) and not (out / "checkpoints").exists()
    leaves_no_result(out)


class Starved:
    """Memory runs out once in each of the chosen steps, in a drawn micro-batch that can still be made smaller."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], draw: random.Random) -> None:
        self.failures = self.seen = 0
        self.victim: int | None = None
        self.order: list[list[int]] = []
        """The ids of each step in the order in which they were learnt from."""
        self.sizes: list[int] = []
        real = Learner.learn

        def learn(learner: Learner, step: Step, rate: float, seed: int) -> Learnt:
            most = learner.limits.micro_tokens
            self.order.append([])
            self.sizes.append(most)
            parts = enumerate(micro_batches(step.batches, most))
            halvable = [number for number, part in parts if 2 * part.num_tokens > most]
            self.seen, self.victim = 0, draw.choice(halvable) if len(self.order) in steps else None
            return real(learner, step, rate, seed)

        monkeypatch.setattr(Learner, "learn", learn)
        monkeypatch.setitem(runs.OBJECTIVES, "sft", self)

    def __call__(self, decoder: Decoder, batch: Batch, chunk_rows: int) -> sft.Loss:
        self.seen += 1
        if self.seen - 1 == self.victim:
            self.failures, self.victim = self.failures + 1, None
            self.order[-1].clear()  # all of the step is done again
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        self.order[-1] += batch.ids.tolist()
        return sft.loss(decoder, batch, chunk_rows)


def test_running_out_of_memory_at_ten_steps_changes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Documents of a few tokens, so that a step can be halved ten times."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    lines = [json.dumps({"prompt": draw.choice(letters), "completion": draw.choice(letters)}) for _ in range(3000)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    tables = settings(
        lora={"dropout": 0.0},  # what is dropped is drawn micro-batch by micro-batch
        train={"max_steps": 12, "tokens_per_step": 2048, "sample_every": 0},
    )
    ran = {}
    for name, steps in (("plain", set()), ("starved", set(draw.sample(range(1, 13), 10)))):
        with pytest.MonkeyPatch.context() as patch:
            ran[name] = Starved(patch, steps, draw)
            finetune(tiny_checkpoint, tmp_path / "d.jsonl", out=tmp_path / name, **tables)
    plain, starved = ran["plain"], ran["starved"]
    assert starved.failures == 10 and plain.failures == 0
    assert starved.sizes[-1] < plain.sizes[-1] / 100
    assert starved.order == plain.order and len(plain.order) == 12
    for before, after in zip(losses(tmp_path / "plain"), losses(tmp_path / "starved"), strict=True):
        for key in ("step", "epoch", "learning_rate", "tokens", "trained_tokens", "examples", "tokens_seen"):
            assert before[key] == after[key], key
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6, abs=0), before["step"]


@pytest.mark.parametrize("strictly", [False, True])
def test_the_same_seed_gives_the_same_metrics_to_the_byte(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, strictly: bool
) -> None:
    def metrics(name: str, seed: int) -> bytes:
        train = {"deterministic": strictly, "seed": seed, "eval_every": 4, "max_steps": 6}
        out = tmp_path / name
        finetune(tiny_checkpoint, data, out=out, **settings(data={"eval_fraction": 0.2}, train=train))
        return "\n".join(json.dumps(record) for record in losses(out)).encode()

    first = metrics("a", 3)
    assert metrics("b", 3) == first and first.count(b"eval_loss") == 3
    assert metrics("c", 4) != first
    assert not torch.are_deterministic_algorithms_enabled()


def signals_at(at: int, *numbers: signal.Signals) -> Callable[[int, sft.Loss], sft.Loss]:
    def trouble(step: int, loss: sft.Loss) -> sft.Loss:
        for number in numbers if step == at else ():
            signal.raise_signal(number)
        return loss

    return trouble


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_lets_the_step_end(
    tiny_checkpoint: Path, data: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "a"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as caught:
        Watched(patch, signals_at(3, number))
        finetune(tiny_checkpoint, data, out=out, **settings())
    assert caught.value.exit_code == code
    assert str(caught.value) == (
        f"{number.name}: stopped after step 3 of 8 with a complete checkpoint. "
        f"Go on with: whippet finetune {out / 'recipe.toml'}"
    )
    assert losses(out) == losses(undisturbed)[:3] and checkpoint.steps(out / "checkpoints") == [2, 3]
    assert main(["finetune", str(out / "recipe.toml")]) == 0
    assert losses(out) == losses(undisturbed)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_second_stops_at_once(
    tiny_checkpoint: Path, data: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "a"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as caught:
        Watched(patch, signals_at(4, number, number))
        finetune(tiny_checkpoint, data, out=out, **settings())
    assert caught.value.exit_code == code
    assert str(caught.value) == f"{number.name}: stopped. Go on with: whippet finetune {out / 'recipe.toml'}"
    assert losses(out) == losses(undisturbed)[:3] and checkpoint.steps(out / "checkpoints") == [2]
    assert main(["finetune", str(out / "recipe.toml")]) == 0
    assert losses(out) == losses(undisturbed)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("where", ["gather", "load_decoder", "_finish"])
def test_a_signal_outside_the_steps_is_told_in_one_line(
    tiny_checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    where: str,
    number: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "a b"
    sets = [f"--set={table}.{key}={json.dumps(value) if not isinstance(value, str) else value}"
            for table, keys in settings(train={"max_steps": 1}).items() for key, value in keys.items()]  # fmt: skip
    command = ["finetune", str(tiny_checkpoint), str(data), "--out", str(out), *sets]
    handlers = [signal.getsignal(one) for one, _ in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, where, lambda *args, **named: signal.raise_signal(number))
        assert main(command) == code
    told = "stopped before anything was written"
    if where != "gather":
        told = f"stopped. Go on with: whippet finetune '{out / 'recipe.toml'}'"
    said = capsys.readouterr().err
    assert said.endswith(f"whippet: {number.name}: {told}\n") and said.count("whippet: ") == 1
    assert out.exists() == (where != "gather")
    assert [signal.getsignal(one) for one, _ in SIGNALS] == handlers
    assert main(["finetune", str(out / "recipe.toml")] if where != "gather" else command) == 0


def test_a_signal_before_a_longer_run_began_leaves_the_shorter_one(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a"
    finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 1}))
    monkeypatch.setattr(runs, "gather", lambda *args, **named: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match=f"SIGTERM: stopped; the run in {out} is as it was"):
        finetune(tiny_checkpoint, data, out=out, **settings(train={"max_steps": 2}))
    assert (out / "summary.json").is_file()
