"""Rows of a decoder's vocabulary for tokens that its tokenizer was given after the fact (``Tokenizer.add``).

V: vocabulary. H: hidden. A new row is the mean of the rows of the tokens that there were, in the embedding and, where
that is a matrix of its own, in the output matrix. The score of a new token is then the mean of all scores, and because
exp is convex its probability at most 1 / (tokens + 1): the model says what it said before until it has learnt the new
tokens, while small random rows, which score about 0, can outweigh all of a model whose scores are negative. Source:
Hewitt, "Initializing new word embeddings for pretrained language models", 2021, without its noise.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from whippet.errors import ModelError
from whippet.model.decoder import Decoder


@torch.no_grad()
def add_rows(decoder: Decoder, before: int, after: int) -> None:
    """Make ids ``before`` to ``after - 1`` known to ``decoder`` (none, where the two are equal); all other rows stay as
    they are, to the bit.

    ``before`` and ``after`` are ``Tokenizer.vocab_size`` without and with the added tokens. Matrices shorter than
    ``after`` grow to it; where a checkpoint has spare rows, the first of them are taken, whatever they held. Means are
    taken in fp32. A grown matrix is a new parameter, so this comes before an optimiser is made; whether it is trained
    stays as it was. ModelError if ``before`` is not between 1 and what the model has, or ``after`` is less.
    """
    if before == after:
        return
    rows = decoder.config.vocab_size
    if not 1 <= before <= min(rows, after):
        raise ModelError(
            f"the tokenizer had {before:,} ids and has {after:,}, and the model has {rows:,} rows: none to add to"
        )
    if decoder.embedding.is_meta:
        raise ModelError("rows cannot be added to a model whose weights were not read")
    decoder.embedding = _grown(decoder.embedding, before, after)
    if decoder.head is not None:
        decoder.head = _grown(decoder.head, before, after)
    decoder.config = dataclasses.replace(decoder.config, vocab_size=max(rows, after))


def _grown(weight_VH: nn.Parameter, before: int, after: int) -> nn.Parameter:
    """With the mean of the first ``before`` rows as rows ``before`` to ``after - 1``."""
    mean_H: Tensor = weight_VH[:before].mean(dim=0, dtype=torch.float32).to(weight_VH.dtype)
    if after <= len(weight_VH):
        weight_VH[before:after] = mean_H
        return weight_VH
    made_VH = torch.cat([weight_VH[:before], mean_H.expand(after - before, -1)])
    return nn.Parameter(made_VH, requires_grad=weight_VH.requires_grad)
