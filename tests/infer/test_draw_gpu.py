"""Draws on a GPU: no waiting, the CPU's tokens, and a CUDA graph that goes on drawing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from whippet.infer.draw import Drawer
from whippet.infer.sampling import Sampling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
VOCAB = 32003
KINDS = [
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_p=0.9, seed=1),
    Sampling(temperature=1.4, top_k=40, min_p=0.01, seed=2),
    Sampling(temperature=1.0, seed=3, repetition_penalty=1.3, frequency_penalty=0.4, logit_bias=((5, 3.0),)),
    Sampling(repetition_penalty=1.2, presence_penalty=1.0),
]
SLOTS = [*range(len(KINDS)), len(KINDS), len(KINDS)]
"""Two rows more than there are requests: those of the spare slot."""


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, whatever makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_drawer(device: str) -> Drawer:
    drawer = Drawer(len(KINDS), VOCAB, torch.device(device))
    for slot, kind in enumerate(KINDS):
        drawer.place(slot, kind, [slot, 5, 5])
    return drawer


def inputs(step: int) -> tuple[Tensor, Tensor]:
    """Logits, whose 16 bits make many equal, and a mask."""
    generator = torch.Generator().manual_seed(step)
    logits_BV = (torch.randn(len(SLOTS), VOCAB, generator=generator) * 2).bfloat16()
    return logits_BV, torch.full((len(SLOTS), (VOCAB + 31) // 32), -2 - step, dtype=torch.int32)


def test_draws_are_the_cpus_and_nothing_waits() -> None:
    here, there = make_drawer("cpu"), make_drawer("cuda")
    slots_B = torch.tensor(SLOTS)
    for step in range(8):
        logits_BV, mask_BW = inputs(step)
        wanted = here.draw(logits_BV, slots_B, SLOTS, mask_BW, top=5, logprobs=True)
        given = logits_BV.cuda(), slots_B.cuda(), SLOTS, mask_BW.cuda()
        with no_waiting():
            found = there.draw(*given, top=5, logprobs=True)
        # Exponentials differ in their last bit, by which a share of 1e-6 of the draws may differ.
        assert found.ids_B.tolist() == wanted.ids_B.tolist() and bool(found.finite_B.all())
        assert found.logprob_B is not None and wanted.logprob_B is not None
        torch.testing.assert_close(found.logprob_B.cpu(), wanted.logprob_B)
        assert found.top_ids_BN is not None and wanted.top_ids_BN is not None
        assert torch.equal(found.top_ids_BN.cpu(), wanted.top_ids_BN)


def test_placing_does_not_wait() -> None:
    drawer = make_drawer("cuda")
    with no_waiting():
        drawer.place(1, KINDS[4], [1, 2, 3], [4, 5])
        drawer.free(1)
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        torch.zeros(1, device="cuda").item()


def test_a_graph_goes_on_drawing_and_sees_who_was_placed() -> None:
    eager, replayed = make_drawer("cuda"), make_drawer("cuda")
    slots_B = torch.tensor(SLOTS, device="cuda")
    static = tuple(x.cuda() for x in inputs(0))
    make_drawer("cuda").draw(static[0], slots_B, SLOTS, static[1], top=5, logprobs=True)  # compiles the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = replayed.draw(static[0], slots_B, SLOTS, static[1], top=5, logprobs=True)
    plan = replayed.plan(SLOTS)
    for step in range(6):
        if step == 3:  # another request of the same kind
            for drawer in (eager, replayed):
                drawer.place(2, Sampling(temperature=1.3, top_p=0.8, seed=9), [1])
            assert replayed.plan(SLOTS) == plan
        for place, values in zip(static, inputs(step), strict=True):
            place.copy_(values)
        graph.replay()
        wanted = eager.draw(static[0], slots_B, SLOTS, static[1], top=5, logprobs=True)
        assert torch.equal(drawn.ids_B, wanted.ids_B)
        assert drawn.logprob_B is not None and wanted.logprob_B is not None
        assert torch.equal(drawn.logprob_B, wanted.logprob_B)
