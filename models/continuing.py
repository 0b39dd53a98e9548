"""How a model goes on: where two greedy continuations part, over batch sizes, over samples.

    agreement  tokens of two greedy continuations before they differ

References:
  Batch sizes: Yuan et al., LayerCast, arXiv 2506.09501.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jentropy import modes

from .decoder import Decoder
from .generation import GREEDY, advance
from .sampling import Sampling
from .scoring import LOGITS, Mean, mean_of
from .state import State, prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of two greedy continuations of one prompt.

    Attributes:
      tokens: before they differ.
      of: tokens that were continued.
      whole: share of the prompts whose continuations are the same to the end.
    """

    tokens: Mean
    of: int
    whole: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """A batch size against the first one of those that were tried.

    Attributes:
      size: sequences at once.
      logits: greatest difference of any logit.
      agreement: of greedy continuations.
    """

    size: int
    logits: float
    agreement: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Averages over sampled continuations, whose errors are over samples and not over prompts.

    Attributes:
      count: of each prompt.
      nll: of the sampled tokens, by the model that drew them.
      length: of a continuation.
      reference: nll by the other model of its own samples, of the same seeds.
      agreement: tokens before the two samples of a seed differ.
    """

    count: int
    nll: Mean
    length: Mean
    reference: Mean | None = None
    agreement: Mean | None = None


def continued(
    model: Decoder,
    prompts: Int[np.ndarray, "prompts time"],
    tokens: int,
    *,
    batch: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "prompts tokens"], Float[np.ndarray, "prompts tokens"]]:
    """Continuations, -1 behind the end of one that ended, and -ln of their probabilities.

    Args:
      tokens: to add.
      batch: prompts at once; None: all.
      sampling: how tokens are chosen.
      seed: of the first prompt; the next has the next.
    """
    ids = np.full((len(prompts), tokens), -1, np.int32)
    nll = np.zeros((len(prompts), tokens), np.float64)
    size, start = batch or len(prompts), prompts.shape[1]
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        seeds = [seed + first + n for n in range(len(part))]
        state: State = prefill(model, part, capacity=start + tokens, seed=seeds)
        state = advance(model, state, tokens, sampling)
        lengths, found = np.asarray(state.lengths) - start, np.asarray(state.tokens)
        logprobs = np.asarray(state.logprobs)
        for n, length in enumerate(lengths):
            ids[first + n, :length] = found[n, start : start + length]
            nll[first + n, :length] = -logprobs[n, start : start + length]
    return ids, nll


def agreed(
    ours: Int[np.ndarray, "prompts tokens"], theirs: Int[np.ndarray, "prompts tokens"]
) -> Float[np.ndarray, " prompts"]:
    """Tokens before two continuations of each prompt differ.

    Example:
      >>> agreed(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[1, 5, 3], [1, 2, 3]])).tolist()
      [1.0, 3.0]
    """
    differ = np.concatenate((ours != theirs, np.ones((len(ours), 1), bool)), axis=1)
    return differ.argmax(1).astype(np.float64)


def agreement_of(
    ours: Int[np.ndarray, "prompts tokens"], theirs: Int[np.ndarray, "prompts tokens"]
) -> Agreement:
    """Of continuations of the same prompts."""
    tokens = agreed(ours, theirs)
    whole = float((tokens == ours.shape[1]).mean())
    return Agreement(tokens=mean_of(tokens), of=ours.shape[1], whole=whole)


@modes.standard
def batch_sizes(
    model: Decoder,
    rows: Int[np.ndarray, "sequences time"],
    sizes: Sequence[int],
    *,
    tokens: int,
) -> tuple[BatchSize, ...]:
    """What the number of sequences that go through a model together changes.

    Args:
      model: the model.
      rows: sequences; as many as the largest size are looked at, the last ones repeated if there
        are fewer. Their first half is continued.
      sizes: each is compared with the first.
      tokens: to continue greedily.

    Returns:
      A row for every size but the first.
    """
    rows = np.resize(rows, (max(sizes), rows.shape[1])).astype(np.int32)
    kept = max(1, LOGITS // (len(rows) * model.config.vocab_size))
    prompts = rows[:, : max(1, rows.shape[1] // 2)]
    logits = {size: _last_logits(model, rows, size, kept) for size in dict.fromkeys(sizes)}
    greedy = {size: continued(model, prompts, tokens, batch=size)[0] for size in logits}
    first, *others = logits
    return tuple(
        BatchSize(
            size=size,
            logits=float(np.abs(logits[size] - logits[first]).max()),
            agreement=agreement_of(greedy[size], greedy[first]),
        )
        for size in others
    )


def _last_logits(model: Decoder, rows: np.ndarray, size: int, kept: int) -> np.ndarray:
    """Logits of the last tokens of all rows, which go through the model `size` at once."""
    graph, weights = nnx.split(model)
    parts = [
        _of_last(graph, weights, jnp.asarray(np.resize(part, (size, part.shape[1]))), kept=kept)
        for part in (rows[n : n + size] for n in range(0, len(rows), size))
    ]
    return np.concatenate([np.asarray(part) for part in parts])[: len(rows)]


@partial(jax.jit, static_argnames=("graph", "kept"))
def _of_last(graph: nnx.GraphDef, weights: nnx.State, ids: Array, *, kept: int) -> Array:
    model = nnx.merge(graph, weights)
    hidden, _ = model.hidden(ids, model.new_cache(*ids.shape), 0)
    return model.logits(hidden[:, -kept:])


@modes.standard
def sampled(
    model: Decoder,
    prompts: Int[np.ndarray, "prompts time"],
    count: int,
    *,
    tokens: int,
    reference: Decoder | None = None,
    sampling: Sampling | None = None,
) -> Samples:
    """Draws continuations several times: single ones say little of a model that is sampled.

    Args:
      model: the model.
      prompts: of one length.
      count: samples of each.
      tokens: of a continuation, at the most.
      reference: draws with the same seeds.
      sampling: how; None: by the probabilities themselves.
    """
    sampling = sampling or Sampling(temperature=1.0)
    figures: dict[str, list[float]] = {"nll": [], "length": [], "reference": [], "agreement": []}
    for n in range(count):
        draw = partial(
            continued, prompts=prompts, tokens=tokens, sampling=sampling, seed=n * len(prompts)
        )
        ids, nll = draw(model)
        length = (ids >= 0).sum(1)
        figures["nll"].append(nll.sum() / max(length.sum(), 1))
        figures["length"].append(length.mean())
        if reference is not None:
            other, nll = draw(reference)
            figures["reference"].append(nll.sum() / max((other >= 0).sum(), 1))
            figures["agreement"].append(agreed(ids, other).mean())
    means = {name: mean_of(np.array(values)) for name, values in figures.items() if values}
    return Samples(count=count, **means)
