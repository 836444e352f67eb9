"""The loop: next step of data, loss, gradient, clip, move, log; evaluate, sample and save when they are due.

Comes in: a ``Job``. Goes out: the decoder, trained, and in the run's folder ``metrics.jsonl``, ``samples.jsonl``,
``checkpoints/``. The ninth arrow of the walk. A step depends on the recipe, the step before and the data alone: its
random numbers are drawn from (seed, step), so a run that was killed anywhere goes on to the same last bit.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from whippet.data.batches import Step
from whippet.errors import UsageError, WhippetError
from whippet.report.display import Display
from whippet.report.metrics import MetricsLog, read_metrics
from whippet.train import checkpoint, nonfinite, speed
from whippet.train.checkpoint import Checkpoint
from whippet.train.evaluate import evaluate, sample
from whippet.train.job import Job, Progress, Stopped, step_seed
from whippet.train.learner import Learner, Learnt, quiet_collector
from whippet.train.limits import Limits
from whippet.train.micro import joined
from whippet.train.optim import (
    learning_rate,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    restore_weights,
    trained_parameters,
)
from whippet.train.signals import Interrupts

METRICS, SAMPLES, BAD_STEPS, CHECKPOINTS = "metrics.jsonl", "samples.jsonl", "bad-steps.jsonl", "checkpoints"
MOST_BAD_STEPS = 3
CHECKPOINTS_AIMED_AT = 10
STEPS_TIMED = 20


class Training:
    """A run in the making: ``resume`` it from its folder, then ``run`` it to its end."""

    def __init__(self, job: Job, display: Display) -> None:
        self.job, self.options, self.total = job, job.recipe.train, job.plan.steps
        self.display = display
        self.decoder = job.model.decoder
        self.parameters = trained_parameters(self.decoder, self.options.method)
        self.optimizer = make_optimizer(self.parameters, self.options)
        self.learner = Learner(
            self.decoder, self.parameters, self.optimizer, job.objective, self.options, job.plan.limits, display.note,
            job.plan.budget_bytes,
        )  # fmt: skip
        self.done = Progress()
        self.saved_at: int | None = None
        self.log, self.samples, self.bad_steps = (
            MetricsLog(job.folder / name) for name in (METRICS, SAMPLES, BAD_STEPS)
        )
        self._evaluated_at: int | None = None
        self._times: deque[float] = deque(maxlen=STEPS_TIMED)
        self._peak_flops = speed.peak_flops(self.decoder.device)

    def resume(self) -> None:
        """Go back to the newest whole checkpoint, if there is one; forget what was logged after it."""
        found = checkpoint.newest(self.job.folder / CHECKPOINTS, self.display.note)
        if found is not None:
            self._restore(found)
        if found is None:
            for log in (self.log, self.samples, self.bad_steps):
                log.truncate_after(-1)
            return
        step = self.done.step
        self.log.truncate_after(step)
        self.bad_steps.truncate_after(step)
        # Answers of this step may be there in part; they come again.
        self.samples.truncate_after(step - 1)
        evaluated = [record["step"] for record in read_metrics(self.log.path) if "eval_loss" in record]
        self._evaluated_at = evaluated[-1] if evaluated else None
        self.display.note(f"going on after step {step:,} of {self.total:,}")

    def run(self) -> None:
        """Train to the last step. Raises Stopped after a signal, WhippetError if the numbers or the disk give up, or
        if the run would end in steps that were not finite."""
        epochs = self.options.epochs if not self.options.max_steps else None
        steps = self.job.batches.steps(self.done.position, epochs)
        with Interrupts() as interrupts, self.display, quiet_collector():
            while True:
                if interrupts.signal is not None:
                    self._stop(interrupts.name, interrupts.signal)
                self._look()
                if self.done.step >= self.total:
                    return self._check_end()
                self._take(next(steps))
                if self._due(self._save_every()) or self.done.step >= self.total:
                    self._save()

    def _check_end(self) -> None:
        """Raise WhippetError if the last steps were not finite: a run that ends so is no success."""
        bad = self.done.bad_in_a_row
        if not bad:
            return
        if bad >= self.done.step:
            told, remedy = "not one step was finite", "look at them, and at the weights of the model"
        else:
            told = f"the last {bad} steps were not finite" if bad > 1 else "the last step was not finite"
            remedy = "look at them, or raise train.max_steps (or train.epochs) to go on from before them"
        raise WhippetError(
            f"step {self.done.step:,} of {self.total:,}: {told}, so the run is no success. Their rows are in "
            f"{self.job.folder / BAD_STEPS}: {remedy}"
        )

    def _take(self, step: Step) -> None:
        """One step of data: learn from it and log it."""
        started = time.perf_counter()
        number = self.done.step + 1
        rate = learning_rate(number, self.total, self.options)
        learnt = self.learner.learn(step, rate, step_seed(self.options.seed, number))
        seconds = time.perf_counter() - started
        bad = learnt.bad_place is not None
        self.done = Progress(
            step=number,
            tokens_seen=self.done.tokens_seen + step.num_tokens,
            position=step.position,
            bad_in_a_row=self.done.bad_in_a_row + 1 if bad else 0,
            seconds=self.done.seconds + seconds,
        )
        self._write(self._record(step, learnt, rate) | {"time": self._timing(step, seconds)})
        if bad:
            self._bad_step(step, learnt)

    def _look(self) -> None:
        """Evaluate and sample, where this step asks for it and it was not done before a restart."""
        step, last = self.done.step, self.done.step >= self.total
        batches = self.job.eval_batches
        due = last or self._due(self.options.eval_every) or self._due(self.options.sample_every)
        if due:
            self.learner.rest()
        if batches is not None and step != self._evaluated_at and (last or self._due(self.options.eval_every)):
            started = time.perf_counter()
            figures = evaluate(self.decoder, batches, self.job.objective, self.learner.limits)
            self._write({"step": step} | figures | {"time": {"eval_s": time.perf_counter() - started}})
        if self.job.prompts and (last or self._due(self.options.sample_every)):
            answers = sample(self.job.model, self.job.prompts)
            for prompt, text in zip(self.job.prompts, answers, strict=True):
                self.samples.append({"step": step, "prompt": prompt.text, "text": text})
                self.display.sample(prompt.text, text)

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_at == self.done.step:
            return
        state = {
            "progress": self.done.as_dict(),
            "limits": self.learner.limits.as_dict(),
            "budget": self.job.recipe.memory.budget,
            "data": self.job.data_seal,
            "tokens_per_step": self.job.batches.tokens_per_step,
        }
        held = Checkpoint(
            step=self.done.step,
            weights={name: parameter.detach() for name, parameter in self.parameters.items()},
            optimizer=optimizer_tensors(self.optimizer, self.parameters),
            state=state,
        )
        checkpoint.save(self.job.folder / CHECKPOINTS, held, keep=self.options.keep)
        self.saved_at = self.done.step

    def _restore(self, found: Checkpoint) -> None:
        state = found.state
        for key, now in (("data", self.job.data_seal), ("tokens_per_step", self.job.batches.tokens_per_step)):
            if state[key] != now:
                what = "the training examples are not those" if key == "data" else f"{key} is {now}, not {state[key]}"
                raise UsageError(f"{self.job.folder}: {what} that this run began with; choose another --out")
        restore_weights(self.parameters, found.weights)
        restore_optimizer(self.optimizer, self.parameters, found.optimizer)
        self.done = Progress.from_dict(state["progress"])
        if state["budget"] == self.job.recipe.memory.budget:
            self.learner.limits = Limits(**state["limits"])
        self.saved_at = found.step

    def _stop(self, name: str, number: int) -> None:
        self._save()
        raise Stopped(
            f"{name}: stopped after step {self.done.step:,} of {self.total:,} with a complete checkpoint. "
            f"Go on with: {self.job.resume_command}",
            number,
        )

    def _bad_step(self, step: Step, learnt: Learnt) -> None:
        batch = learnt.bad_batch if learnt.bad_batch is not None else joined(step.batches)
        rows = nonfinite.rows(batch, self.job.model.tokenizer)
        self.bad_steps.append({"step": self.done.step, "place": learnt.bad_place, "rows": rows})
        told = f"step {self.done.step}: {learnt.bad_place} is NaN or infinite; the step was skipped, its rows are in"
        self.display.note(f"{told} {BAD_STEPS}")
        if self.done.bad_in_a_row >= MOST_BAD_STEPS:
            raise WhippetError(
                f"{MOST_BAD_STEPS} steps in a row were not finite, the last in the {learnt.bad_place}; stopped. Their "
                f"rows are in {self.job.folder / BAD_STEPS}. Lower train.learning_rate, or look at the data"
            )

    def _record(self, step: Step, learnt: Learnt, rate: float) -> dict[str, Any]:
        skipped = {} if learnt.bad_place is None else {"skipped": learnt.bad_place}
        return {
            "step": self.done.step,
            "epoch": self.done.position.epoch,
            "loss": learnt.loss,
            "accuracy": learnt.accuracy,
            "learning_rate": rate,
            "grad_norm": learnt.grad_norm,
            "tokens": step.num_tokens,
            "trained_tokens": learnt.num_trained,
            "examples": step.num_examples,
            "tokens_seen": self.done.tokens_seen,
        } | skipped

    def _timing(self, step: Step, seconds: float) -> dict[str, float]:
        self._times.append(seconds)
        usual = sorted(self._times)[len(self._times) // 2]
        timing = {"step_s": seconds, "tokens_per_s": step.num_tokens / seconds}
        timing["eta_s"] = usual * (self.total - self.done.step)
        peak = speed.peak_memory(self.decoder.device)
        if peak is not None:
            timing["peak_bytes"] = peak
        if self._peak_flops is not None:
            per_token = self.job.plan.flops_per_step / self.job.plan.tokens_per_step
            timing["mfu"] = per_token * step.num_tokens / seconds / self._peak_flops
        return timing

    def _write(self, record: dict[str, Any]) -> None:
        self.log.append(record)
        self.display.step(record)
        for tracker in self.job.trackers:
            tracker.log(record)

    def _due(self, every: int) -> bool:
        """Before the first step everything is due once, so that what training changed can be seen."""
        return self.done.step % every == 0 if every else self.done.step == 0

    def _save_every(self) -> int:
        return self.options.save_every or max(1, self.total // CHECKPOINTS_AIMED_AT)
