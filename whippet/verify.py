"""Reading an exported folder back: are its tensors, its tokenizer and its answers those of the model that was trained?

Comes in: what was to be written (a ``Ledger`` filled while it was, the renderer) and the folder. Goes out: nothing, or
a GateError that names the first thing that is not as it was meant; and the logits by which two models are compared.
Nothing here trusts the writer: names, shapes and bytes are read from the files. P: positions. V: vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from whippet import lora
from whippet.chat.messages import Message
from whippet.chat.render import Renderer
from whippet.chat.template_variables import with_defaults
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import DataError, GateError
from whippet.model.decoder import Decoder
from whippet.model.projection import Projection
from whippet.report.compare import PROMPTS, QUESTIONS
from whippet.weights.files import read_json
from whippet.weights.hf import CheckpointReader
from whippet.weights.names import table


@dataclass
class Ledger:
    """What was handed to the writer: a digest of each tensor, and how much it was."""

    digests: dict[str, str] = field(default_factory=dict)
    num_parameters: int = 0

    def watched(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors, noted as they pass. Raises GateError for one with a value that is not finite."""
        for name, tensor in tensors:
            if not tensor.isfinite().all():
                advice = (
                    "; its values are too large for fp16, use --dtype bf16" if tensor.dtype == torch.float16 else ""
                )
                raise GateError(f"{name} holds values that are not finite in {tensor.dtype}{advice}")
            self.digests[name] = digest(tensor)
            self.num_parameters += tensor.numel()
            yield name, tensor


def digest(tensor: Tensor) -> str:
    """A fingerprint of dtype, shape and bytes."""
    seal = hashlib.blake2b(f"{tensor.dtype}{list(tensor.shape)}".encode(), digest_size=16)
    seal.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return seal.hexdigest()


def check_tensors(folder: Path, ledger: Ledger) -> None:
    """Every tensor in the files is the one that was handed over, and there is no other."""
    with CheckpointReader(folder) as reader:
        if stray := sorted(set(reader.tensors) ^ set(ledger.digests)):
            raise GateError(f"{folder}: {stray[0]!r} is {'extra' if stray[0] in reader.tensors else 'missing'}")
        for name, wanted in ledger.digests.items():
            if digest(reader.tensor(name)) != wanted:
                raise GateError(f"{folder}: {name} is not what was written")


def check_words(folder: Path, renderer: Renderer, pad_token: str | None) -> None:
    """The folder's tokenizer gives the same ids, its template is there twice, equal, and replies end as they should."""
    written, tokenizer = Tokenizer.load(folder), renderer.tokenizer
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token if pad_token is None else pad_token)
    if (written.bos_token, written.eos_token, written.pad_token) != named:
        raise GateError(f"{folder}: the special tokens are not {named}")
    for text in (*PROMPTS, *QUESTIONS):
        if written.encode(text, special_tokens=True) != tokenizer.encode(text, special_tokens=True):
            raise GateError(f"{folder}: the tokenizer reads {text!r} differently")
    if renderer.template is not None:
        held = read_json(folder / "tokenizer_config.json").get("chat_template")
        beside = (folder / "chat_template.jinja").read_bytes().decode("utf-8")
        if not beside == held == with_defaults(renderer.template.source, renderer.variables):
            raise GateError(f"{folder}: the chat template is not the one that was trained with")
    stops = read_json(folder / "generation_config.json").get("eos_token_id")
    listed = frozenset(stops if isinstance(stops, list) else [] if stops is None else [stops])
    if listed != renderer.stop_ids:
        raise GateError(f"{folder}: generation_config.json stops at {sorted(listed)}, not {sorted(renderer.stop_ids)}")


@torch.no_grad()
def bases_distance(decoder: Decoder, folder: Path) -> float:
    """How far the base that the decoder holds is from the weights in ``folder``: ``‖held - stored‖ / ‖stored‖`` over
    all projections, adapters left out."""
    apart = whole = 0.0
    with lora.disabled(decoder), CheckpointReader(folder) as reader:
        for entry in table(decoder.config):
            if not entry.quantisable:
                continue
            projection = decoder.get_submodule(entry.ours.removesuffix(".weight"))
            assert isinstance(projection, Projection)
            for name, held in entry.split(projection.weight_fp32()):
                stored = reader.tensor(name, held.device).float()
                apart += float((held - stored).double().square().sum())
                whole += float(stored.double().square().sum())
    return math.sqrt(apart / whole) if whole else 0.0


def probes(renderer: Renderer, context: int) -> list[list[int]]:
    """The fixed texts as ids, and the fixed questions where the template can ask them."""
    found = [renderer.tokenizer.encode(text, special_tokens=True) for text in PROMPTS]
    for question in QUESTIONS if renderer.template is not None else ():
        try:
            found.append(renderer.prompt_ids([Message("user", question)]))
        except DataError:
            # Some templates want more than one bare question; the plain texts are compared all the same.
            continue
    return [ids[:context] for ids in found if ids]


@torch.no_grad()
def probe_logits(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits after every token of every prompt: fp32 ``[P, V]`` on the CPU, the prompts packed into one stream."""
    device = decoder.device
    lengths = torch.tensor([len(ids) for ids in prompts])
    borders = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32).to(device)
    ids_P = torch.tensor([token for ids in prompts for token in ids], device=device)
    positions_P = torch.cat([torch.arange(int(length)) for length in lengths]).to(device)
    hidden_PH = decoder(ids_P, positions_P, borders, int(lengths.max()))
    return torch.cat([decoder.logits(rows).cpu() for rows in hidden_PH.split(128)])
