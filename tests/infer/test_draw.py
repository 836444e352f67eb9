"""Draws of many rows: shares, independence of the rows, what is never drawn, and that nothing waits for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers_choose import choose
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from whippet.errors import UsageError
from whippet.infer.draw import Drawer, Draws, greedy, likeliest, pick
from whippet.infer.sampling import Sampling
from whippet.infer.uniform import key, uniform
from whippet.kernels.truncate import truncate

CPU = torch.device("cpu")
VOCAB = 1003
KINDS = [
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_p=0.9, seed=1),
    Sampling(temperature=1.4, top_k=40, min_p=0.01, seed=2),
    Sampling(temperature=1.0, seed=3, repetition_penalty=1.3, frequency_penalty=0.4),
    Sampling(repetition_penalty=1.2, presence_penalty=1.0),
    Sampling(temperature=0.9, seed=4, logit_bias={5: 3.0, 900: -100.0}),
    Sampling(temperature=2.0, top_k=7, top_p=0.8, seed=5, logit_bias={5: 3.0}, presence_penalty=-0.5),
]
ALL_BITS = torch.full(((VOCAB + 31) // 32,), -1, dtype=torch.int32)


def logits_of(request: int, step: int, vocab: int = VOCAB) -> Tensor:
    """Logits with many equal ones, as those of 16-bit models are."""
    generator = torch.Generator().manual_seed(1000 * request + step)
    return (torch.randn(vocab, generator=generator) * 2).bfloat16()


def mask_of(request: int) -> Tensor:
    return torch.where(torch.arange(len(ALL_BITS)) == 3, 5, ALL_BITS).int() if request == 2 else ALL_BITS


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def replies(
    order: list[int], steps: int, *, rows: int, top: int, padding: int = 0
) -> dict[int, list[tuple[object, ...]]]:
    """Everything that is told of each of the requests ``order``, drawn together in slots of that order."""
    drawer = Drawer(rows, VOCAB, CPU)
    slots = [rows - 1 - place for place in range(len(order))]
    for slot, request in zip(slots, order, strict=True):
        drawer.place(slot, KINDS[request], [request, 5, 5])
    slots += [drawer.spare] * padding
    told: dict[int, list[tuple[object, ...]]] = {request: [] for request in order}
    for step in range(steps):
        logits_BV = torch.stack(
            [logits_of(request, step) for request in order] + [torch.zeros(VOCAB).bfloat16()] * padding
        )
        mask = torch.stack([mask_of(request) for request in order] + [ALL_BITS] * padding)
        drawn = drawer.draw(logits_BV, torch.tensor(slots), slots, mask, top=top, logprobs=True)
        assert drawn.logprob_B is not None and drawn.top_ids_BN is not None and drawn.top_logprobs_BN is not None
        for row, request in enumerate(order):
            told[request].append((
                int(drawn.ids_B[row]), bool(drawn.finite_B[row]), float(drawn.logprob_B[row]),
                drawn.top_ids_BN[row, :3].tolist(), drawn.top_logprobs_BN[row, :3].tolist(),
            ))  # fmt: skip
    return told


def test_a_row_does_not_depend_on_the_rows_beside_it(threads: int) -> None:
    alone = {request: replies([request], 6, rows=1, top=3)[request] for request in range(len(KINDS))}
    assert len({tuple(str(told)) for told in alone.values()}) == len(KINDS)
    together = replies(list(range(len(KINDS))), 6, rows=len(KINDS), top=3)
    backwards = replies([7, 2, 5, 0, 3, 6], 6, rows=9, top=20, padding=3)
    for request in range(len(KINDS)):
        assert together[request] == alone[request], request
    for request, told in backwards.items():
        assert told == alone[request], request


def test_rows_may_come_and_go() -> None:
    drawer = Drawer(2, VOCAB, CPU)
    drawer.place(0, KINDS[4], [4, 5, 5])
    drawer.place(1, KINDS[2], [2, 5, 5])
    alone = [told[0] for told in replies([4], 6, rows=1, top=3)[4]]
    found = []
    for step in range(6):
        slots = [[0, 1], [0], [1, 0], [0], [1, 0], [0, 1]][step]
        if step == 2:
            drawer.free(1)
            drawer.place(1, KINDS[7], [1, 2, 3])
        logits_BV = torch.stack([logits_of(4 if slot == 0 else 99, step) for slot in slots])
        found.append(int(drawer.draw(logits_BV, torch.tensor(slots), slots).ids_B[slots.index(0)]))
    assert found == alone
    again = Drawer(1, VOCAB, CPU)
    again.place(0, KINDS[4], [4, 5, 5], found[:4])
    rest = [int(again.draw(logits_of(4, step)[None], torch.tensor([0]), [0]).ids_B[0]) for step in (4, 5)]
    assert rest == found[4:]


def test_a_slot_that_was_freed_is_greedy() -> None:
    drawer, alone = Drawer(2, VOCAB, CPU), Drawer(1, VOCAB, CPU)
    drawer.place(0, replace(KINDS[2], temperature=3.0), [])
    drawer.free(0)
    for each, slot in ((drawer, 1), (alone, 0)):
        each.place(slot, KINDS[1], [])
    for step in range(4):
        logits_V = logits_of(1, step)
        drawn = drawer.draw(logits_V.expand(2, -1), torch.tensor([0, 1]), [0, 1]).ids_B
        assert int(drawn[0]) == int(greedy(logits_V[None]))
        assert int(drawn[1]) == int(alone.draw(logits_V[None], torch.tensor([0]), [0]).ids_B)


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0, 0.0), (0.8, 6, 1.0, 0.0), (1.2, 0, 0.7, 0.0), (1.0, 9, 0.9, 0.05)])
def test_shares_of_many_draws(setting: tuple[float, int, float, float]) -> None:
    temperature, top_k, top_p, min_p = setting
    slots, steps = 400, 25
    logits_V = torch.randn(17, generator=torch.Generator().manual_seed(8)) * 1.5
    drawer = Drawer(slots, 17, CPU)
    for slot in range(slots):
        drawer.place(slot, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=slot), [])
    rows, counts = list(range(slots)), torch.zeros(17)
    for _ in range(steps):
        drawn = drawer.draw(logits_V.expand(slots, -1), torch.arange(slots), rows)
        counts += torch.bincount(drawn.ids_B, minlength=17)
    # The other sampler's shares, from evenly spaced numbers instead of random ones.
    even = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    columns = (torch.full((20_000,), temperature), torch.full((20_000,), top_k), torch.full((20_000,), top_p))
    chosen = choose(logits_V.expand(20_000, -1), even, *columns, torch.full((20_000,), min_p))
    shares = torch.bincount(chosen, minlength=17) / 20_000
    assert counts[shares == 0].sum() == 0
    expected = shares[shares > 0] * slots * steps
    # Chi square with at most 16 degrees of freedom: above 39.3 with p < 0.001.
    assert float(((counts[shares > 0] - expected) ** 2 / expected).sum()) < 39.3


def test_the_share_at_which_a_token_is_picked() -> None:
    weights = torch.tensor([[0, 1, 0, 2, 1, 0]]).expand(5, -1) << 58
    shares = torch.tensor([0.0, 0.25 - 2**-53, 0.25, 0.75 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    assert pick(weights, shares).tolist() == [1, 1, 3, 3, 4]


def test_the_nth_draw_is_the_nth_number_of_the_seed() -> None:
    drawer = Drawer(1, 50, CPU)
    drawer.place(0, Sampling(temperature=0.5, top_k=20, seed=11), [])
    for step in range(4):
        logits_BV = logits_of(0, step, 50)[None].float()
        probs_BV = ((logits_BV - logits_BV.max()) / 0.5).softmax(-1)
        weights = truncate(logits_BV, probs_BV, torch.tensor([20]), torch.ones(1), torch.zeros(1))
        wanted = pick(weights, uniform(torch.tensor([key(11)]), torch.tensor([step])))
        assert torch.equal(drawer.draw(logits_BV, torch.tensor([0]), [0]).ids_B, wanted)


def one(sampling: Sampling, logits_V: Tensor, mask: Tensor | None = None, prompt: tuple[int, ...] = ()) -> Draws:
    drawer = Drawer(1, len(logits_V), CPU)
    drawer.place(0, sampling, prompt)
    return drawer.draw(logits_V[None], torch.tensor([0]), [0], None if mask is None else mask[None])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, seed=0), Sampling(temperature=1.0, top_p=0.5)]
)
def test_biases_and_masks_decide(sampling: Sampling) -> None:
    logits_V = torch.linspace(-5, 5, 40)
    assert int(one(replace(sampling, logit_bias={3: 100.0}), logits_V).ids_B) == 3
    banned = dict.fromkeys(range(1, 40), -100.0)
    assert int(one(replace(sampling, logit_bias=banned), logits_V).ids_B) == 0
    only_33 = torch.tensor([0, 1 << 1], dtype=torch.int32)
    assert int(one(sampling, logits_V, only_33).ids_B) == 33
    # The grammar has the last word, and a token behind the vocabulary is none.
    assert int(one(replace(sampling, logit_bias={3: 100.0}), logits_V, only_33).ids_B) == 33
    assert not one(sampling, logits_V, torch.tensor([0, 1 << 20], dtype=torch.int32)).finite_B


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_cannot_be_drawn_from_flags_only_itself(bad: float) -> None:
    drawer = Drawer(len(KINDS), 40, CPU)
    slots = list(range(len(KINDS)))
    for slot, kind in enumerate(KINDS):
        drawer.place(slot, replace(kind, logit_bias=()), [1])
    for broken in slots:
        logits_BV = torch.randn(len(KINDS), 40)
        logits_BV[broken, slice(None) if bad == -math.inf else 3] = bad
        mask = torch.full((len(KINDS), 2), -1, dtype=torch.int32)
        mask[:, 0] = ~(1 << 3)  # a mask hides no damage
        for given in (None, mask):
            drawn = drawer.draw(logits_BV, torch.tensor(slots), slots, given, top=2, logprobs=True)
            assert drawn.finite_B.tolist() == [slot != broken for slot in slots]
            assert int(drawn.ids_B.min()) >= 0 and int(drawn.ids_B.max()) < 40


def test_tiny_temperatures_and_top_k_1_are_greedy() -> None:
    logits_V = logits_of(0, 0)
    for sampling in (Sampling(temperature=1e-60), Sampling(temperature=1e-3), Sampling(temperature=5.0, top_k=1)):
        drawn = one(sampling, logits_V)
        assert drawn.finite_B and int(drawn.ids_B) == int(greedy(logits_V[None]))


def test_log_probabilities_are_of_the_model_itself() -> None:
    logits_V = logits_of(0, 0).float()
    wanted_V = logits_V.log_softmax(-1)
    drawer = Drawer(1, VOCAB, CPU)
    drawer.place(0, KINDS[7], [1, 2])
    drawn = drawer.draw(logits_V[None], torch.tensor([0]), [0], top=20, logprobs=True)
    assert drawn.logprob_B is not None and drawn.top_ids_BN is not None and drawn.top_logprobs_BN is not None
    assert torch.equal(drawn.logprob_B, wanted_V[drawn.ids_B])
    order = sorted(range(VOCAB), key=lambda token: (-float(logits_V[token]), token))
    assert drawn.top_ids_BN[0].tolist() == order[:20]
    assert torch.equal(drawn.top_logprobs_BN[0], wanted_V[order[:20]])
    plain = drawer.draw(logits_V[None], torch.tensor([0]), [0])
    assert plain.logprob_B is plain.top_ids_BN is plain.top_logprobs_BN is None


def test_equal_tokens_are_told_in_order_of_their_ids() -> None:
    logits_BV = torch.tensor([[-0.0, 2.0, 0.0, -1.0, 2.0, -math.inf, -1.0]])
    assert likeliest(logits_BV, 9).tolist() == [[1, 4, 0, 2, 3, 6, 5]]


def test_a_request_without_a_seed_draws_anew() -> None:
    drawer, found = Drawer(1, VOCAB, CPU), set()
    for _ in range(4):
        drawer.place(0, Sampling(temperature=2.0), [])
        found.add(tuple(int(drawer.draw(logits_of(0, 0)[None], torch.tensor([0]), [0]).ids_B) for _ in range(4)))
    assert len(found) == 4


def test_what_was_drawn_is_counted() -> None:
    drawer = Drawer(2, 4, CPU)
    drawer.place(0, Sampling(frequency_penalty=1.0), [3, 3, 3])
    drawer.place(1, Sampling(repetition_penalty=2.0), [3])
    found = []
    for _ in range(6):
        drawn = drawer.draw(torch.tensor([[1.0, 2.5, 0.0, 3.0]] * 2), torch.tensor([0, 1]), [0, 1])
        found.append(tuple(drawn.ids_B.tolist()))
    # First row: each draw takes 1 from its token. Second: 3 is halved from the start (1.5), 1 once it came (1.25).
    assert found == [(3, 1), (1, 3), (3, 3), (1, 3), (0, 3), (3, 3)]


def test_a_bias_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(UsageError, match="logit_bias = 61: must be about tokens below 61"):
        Drawer(1, 61, CPU).place(0, Sampling(logit_bias={61: 1.0}), [])


def test_nothing_needs_a_value_on_the_host() -> None:
    """Fake tensors have shapes and no values, so whatever wanted one would fail: the shapes of a draw are known."""
    with FakeTensorMode():
        drawer = Drawer(len(KINDS), VOCAB, CPU)
        for slot, kind in enumerate(KINDS):
            drawer.place(slot, kind, [1, 2])
        for slots in ([0], [0, 8, 8], [1, 0], [2, 3], list(range(8))):
            given = torch.empty(len(slots), VOCAB, dtype=torch.bfloat16), torch.tensor(slots), slots
            for mask in (None, torch.empty(len(slots), len(ALL_BITS), dtype=torch.int32)):
                drawn = drawer.draw(*given, mask, top=5, logprobs=True)
                assert drawn.ids_B.shape == (len(slots),) and drawn.top_ids_BN is not None
                assert drawn.top_ids_BN.shape == (len(slots), 5)
        with pytest.raises(DataDependentOutputException):
            drawn.ids_B[0].item()


def test_a_plan_tells_what_is_computed() -> None:
    drawer = Drawer(len(KINDS), VOCAB, CPU)
    for slot, kind in enumerate(KINDS):
        drawer.place(slot, kind, [1])
    assert drawer.plan([0, drawer.spare]) == drawer.plan([drawer.spare, 0]) != drawer.plan([0])
    full = drawer.plan(range(8))
    assert (full.rows, full.sampled, full.truncated, full.penalties, full.biases) == (8, 6, 3, True, True)
    drawer.free(7)
    assert drawer.plan(range(8)).truncated == 2
