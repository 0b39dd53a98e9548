"""What a model loses: likelihood of a text, distance from another model, steadiness over batches.

Sequences are what varies: a figure is the mean over sequences of the mean over their tokens, and
its standard error that of this mean; differences between two models are taken sequence by sequence.

    nll         -ln of the probability of the next token
    kl          sum over the vocabulary of p_ref ln(p_ref / p)
    flips       share of tokens where the likeliest next token is another one
    agreement   tokens of two greedy continuations before they differ

References:
  LayerCast: Yuan et al., arXiv 2506.09501; KL and flips: Dutta et al., arXiv 2407.09141.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jentropy import modes
from jentropy.checkpoints.progress import Progress, expect
from jentropy.errors import InputError

from .decoder import Decoder
from .generation import GREEDY, advance
from .sampling import Sampling
from .state import State, prefill, token_rows

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that was asked for; see the classes of its parts."""

    likelihood: Likelihood
    agreement: Agreement | None = None
    batch_sizes: tuple[BatchSize, ...] = ()
    samples: Samples | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what was not asked for; an infinite error is null."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if one not in (None, ())}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if value == math.inf else value


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


def evaluate(
    model: Decoder,
    rows: Int[np.ndarray, "sequences time"],
    *,
    reference: Decoder | None = None,
    sizes: Sequence[int] = (),
    samples: int = 0,
    tokens: int = 64,
    prompts: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """All figures of a model.

    Args:
      model: the model.
      rows: the text, see `likelihood`.
      reference: what it is compared with.
      sizes: batch sizes, see `batch_sizes`; none: no such figures.
      samples: of every prompt; 0: none.
      tokens: of continuations.
      prompts: first halves of as many sequences are continued, greedily and by samples.
      progress: as of `likelihood`.
    """
    starts = rows[:prompts, : max(1, rows.shape[1] // 2)]
    agreement = None
    found = likelihood(model, rows, reference, progress=progress)
    if reference is not None:
        greedy = [continued(one, starts, tokens)[0] for one in (model, reference)]
        agreement = agreement_of(*greedy)
    return Evaluation(
        likelihood=found,
        agreement=agreement,
        batch_sizes=batch_sizes(model, rows, sizes, tokens=tokens) if len(sizes) > 1 else (),
        samples=sampled(model, starts, samples, tokens=tokens, reference=reference)
        if samples
        else None,
    )
