"""Likelihood of a text by a model, and how far that is from another model.

Sequences are what varies: a figure is the mean over sequences of the mean over their tokens, and
its standard error that of this mean; differences between two models are taken sequence by sequence.

    nll    -ln of the probability of the next token
    kl     sum over the vocabulary of p_ref ln(p_ref / p)
    flips  share of tokens where the likeliest next token is another one

References:
  KL and flips: Dutta et al., arXiv 2407.09141.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jentropy import modes
from jentropy.checkpoints.progress import Progress, expect
from jentropy.errors import InputError

from .decoder import Decoder
from .state import token_rows

LOGITS = 1 << 25  # numbers that are looked at together, of each model


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean and its standard error.

    Example:
      >>> mean_of(np.array([1.0, 2.0, 3.0])).value
      2.0
    """

    value: float
    error: float


def mean_of(values: Float[np.ndarray, " sequences"]) -> Mean:
    """The mean over sequences; of a single one the error is infinite."""
    error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.inf
    return Mean(value=float(values.mean()), error=float(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """Of a text by a model, and how far that is from a reference.

    Attributes:
      sequences, tokens: that were predicted.
      nll, perplexity: of the model.
      reference: nll of the other one; None: there is none.
      difference: of nll, the model's less the reference's.
      kl, flips: see above.
    """

    sequences: int
    tokens: int
    nll: Mean
    perplexity: Mean
    reference: Mean | None = None
    difference: Mean | None = None
    kl: Mean | None = None
    flips: Mean | None = None


@modes.standard
def likelihood(
    model: Decoder,
    rows: Int[Array | np.ndarray, "sequences time"],
    reference: Decoder | None = None,
    *,
    progress: Progress | None = None,
) -> Likelihood:
    """Scores a text.

    Args:
      model: the model.
      rows: sequences of one length, of 2 tokens at least; the first token of each is given.
      reference: another model of the same vocabulary.
      progress: called with the sequences done since the last call.

    Raises:
      InputError: another vocabulary, or sequences of one token.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> found = likelihood(model, np.array([[607, 546, 0, 607]] * 2), model)
      >>> found.kl.value, found.difference.value, found.tokens
      (0.0, 0.0, 6)
    """
    ids = np.stack(token_rows(rows, model.config.vocab_size)).astype(np.int32)
    if ids.shape[1] < 2:
        raise InputError("tokens of a sequence", expected="at least 2", found=ids.shape[1])
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        raise InputError(
            "vocabulary of the two models",
            expected=reference.config.vocab_size,
            found=model.config.vocab_size,
        )
    batch = max(1, LOGITS // (ids.shape[1] * model.config.vocab_size))
    parts = []
    expect(progress, len(ids))
    for first in range(0, len(ids), batch):
        part = jnp.asarray(ids[first : first + batch])
        logits = model(part)
        parts.append(_scores(logits, None if reference is None else reference(part), part))
        if progress:
            progress(len(part))
    scores = {
        name: np.concatenate([np.asarray(part[name], np.float64) for part in parts])
        for name in parts[0]
    }
    nll = mean_of(scores["nll"])
    perplexity = math.exp(min(nll.value, 700.0))
    compared = (
        {}
        if reference is None
        else {
            "reference": mean_of(scores["reference"]),
            "difference": mean_of(scores["nll"] - scores["reference"]),
            "kl": mean_of(scores["kl"]),
            "flips": mean_of(scores["flips"]),
        }
    )
    return Likelihood(
        sequences=len(ids),
        tokens=len(ids) * (ids.shape[1] - 1),
        nll=nll,
        perplexity=Mean(value=perplexity, error=perplexity * nll.error),
        **compared,
    )


@jax.jit
def _scores(
    logits: Float[Array, "batch time vocabulary"],
    reference: Float[Array, "batch time vocabulary"] | None,
    ids: Int[Array, "batch time"],
) -> dict[str, Float[Array, " batch"]]:
    """Means over the tokens of each sequence, one sequence after the other."""

    def one(each: tuple[Array, Array | None, Array]) -> dict[str, Array]:
        logits, reference, ids = each
        ours = jax.nn.log_softmax(logits[:-1])
        next_token = ids[1:, None]
        found = {"nll": -jnp.take_along_axis(ours, next_token, axis=-1).mean()}
        if reference is None:
            return found
        theirs = jax.nn.log_softmax(reference[:-1])
        kl = (jnp.exp(theirs) * (theirs - ours)).sum(-1)
        return {
            **found,
            "reference": -jnp.take_along_axis(theirs, next_token, axis=-1).mean(),
            "kl": kl.mean(),
            "flips": (ours.argmax(-1) != theirs.argmax(-1)).mean(),
        }

    return jax.lax.map(one, (logits, reference, ids))
