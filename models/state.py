"""Sequences that a model goes on with, and prompts read into them.

Prompts go through the model in chunks. Lengths of chunks and capacities of caches are few, so that
programs are, and memory does not depend on a prompt's length but for the cache. Chunks are padded
behind the last token of each sequence: a token lies in the same slot in every batch, and sees the
same keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jentropy import modes
from jentropy.errors import InputError

from .caches import Cache
from .decoder import Decoder
from .placing import in_place, over_mesh

CHUNK = 512  # most tokens of a sequence that go through the model at once
SHORTEST = 16  # tokens of a chunk; fewer cost about as much
CAPACITY = 128  # positions that there is room for at least


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Sequences so far, and what a model needs to go on with them: a pytree.

    Attributes:
      cache: of all their tokens.
      tokens: int32[batch, capacity], those of a sequence in its first `lengths` places.
      logprobs: float32[batch, capacity], natural logarithms of the probabilities that the model
        gave to the tokens that were added, whatever drew them; 0 for prompts.
      lengths: int32[batch].
      logits: float32[batch, vocabulary] of the next tokens.
      seeds: uint32[batch] of the sequences' random numbers.
      done: bool[batch], which sequences ended with a stop token, and grow no more.

    Example:
      >>> from jentropy import models
      >>> state = models.prefill(models.load(models.BUNDLED), [[607, 546], [607]])
      >>> state.capacity, state.lengths.tolist(), state.tokens[0, :2].tolist()
      (128, [2, 1], [607, 546])
    """

    cache: tuple[Cache, ...]
    tokens: Any
    logprobs: Any
    lengths: Any
    logits: Any
    seeds: Any
    done: Any

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.tokens.shape[1]

    def keeps_all(self) -> bool:
        """Whether every position is in the caches, so that shorter `lengths` are sequences too."""
        slots = [one.capacity for one in self.cache if one.sliding]
        return all(int(self.lengths.max()) <= size for size in slots)

    def specs(self) -> State:
        """How its arrays are split over a mesh with Explicit axes."""
        return jax.tree.map(modes.spec_of, self)


@modes.standard
def prefill(
    model: Decoder,
    prompts: Int[Array | np.ndarray, "batch time"] | Sequence[Sequence[int] | np.ndarray],
    *,
    capacity: int = 0,
    seed: int | Sequence[int] = 0,
    state: State | None = None,
) -> State:
    """Reads prompts, of any lengths.

    Args:
      model: the model.
      prompts: int[batch, time], or the tokens of each sequence: one at least.
      capacity: positions that will be needed, as far as is known.
      seed: of the random numbers of each sequence; or of the first, and the next has the next.
      state: is continued by these tokens, and used up: a chat's turn. Sequences that were done go
        on; `seed` is not read.

    Returns:
      The state behind the last tokens.

    Raises:
      InputError: an empty prompt, tokens that are not in the vocabulary, or more positions than
        the model has.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> state = models.prefill(model, [[607, 546], [607]])
      >>> for _ in range(3):
      ...     state = models.step(model, state, models.sample(state))
      >>> state.lengths.tolist(), state.logits.shape
      ([5, 4], (2, 1024))
    """
    rows = token_rows(prompts, model.config.vocab_size)
    counts = np.array([len(row) for row in rows])
    longest = int(counts.max())
    if state is None:
        state = empty(model, _seeds(seed, len(rows)), bucket(max(capacity, longest)))
    starts = np.array(state.lengths)
    if len(starts) != len(rows):
        raise InputError("prompts", expected=f"{len(starts)}, as in the state", found=len(rows))
    chunks = []
    for first in range(0, longest, CHUNK):
        here = np.clip(counts - first, 0, CHUNK)
        size = max(SHORTEST, 1 << (int(here.max()) - 1).bit_length())
        ids = np.zeros((len(rows), size), np.int32)
        for row, found, count in zip(ids, rows, here, strict=True):
            row[:count] = found[first : first + count]
        chunks.append((ids, here, int((starts + np.minimum(counts, first)).max()) + size))
    refuse_more(model, int((starts + counts).max()), "prompt")
    state = with_room(model, state, max(capacity, *(end for _, _, end in chunks)))
    graph, weights = nnx.split(model)
    for ids, here, _ in chunks:
        state = read_chunk(graph, weights, state, ids, here.astype(np.int32), starts + counts)
    return renewed(model, state, starts)


def until_outgrown(model: Decoder, state: State) -> int | None:
    """How many tokens the next sequence may grow by whose rope then changes; None: none will."""
    if (limit := model.config.outgrown) is None:
        return None
    lengths, done = np.asarray(state.lengths), np.asarray(state.done)
    left = limit + 1 - lengths[~done & (lengths <= limit)]
    return int(left.min()) if left.size else None


def renewed(model: Decoder, state: State, lengths: np.ndarray) -> State:
    """The state, its cache made anew if one of these lengths has outgrown its rope by now."""
    if (limit := model.config.outgrown) is None:
        return state
    tokens, now = np.asarray(state.tokens), np.asarray(state.lengths)
    if not ((lengths > 0) & (lengths <= limit) & (now > limit)).any():
        return state
    rows = [row[:length] for row, length in zip(tokens, now, strict=True)]
    new = prefill(model, rows, capacity=state.capacity)
    return replace(state, cache=new.cache, logits=new.logits)


def refuse_more(model: Decoder, positions: int, what: str) -> None:
    """Raises InputError where a model has not so many positions."""
    if positions > (last := model.config.max_position_embeddings):
        raise InputError(what, expected=f"at most {last} positions", found=positions)


def with_room(model: Decoder, state: State, positions: int) -> State:
    """The state, or if it has no room for so many positions one that has, and the same in it."""
    more = bucket(positions) - state.capacity
    if more <= 0:
        return state
    tokens, logprobs = (jnp.pad(a, ((0, 0), (0, more))) for a in (state.tokens, state.logprobs))
    cache = model.grown(state.cache, state.capacity + more)
    return replace(state, tokens=tokens, logprobs=logprobs, cache=cache)


def bucket(positions: int) -> int:
    """The capacity for so many positions: CAPACITY times a power of 2, or times 3 / 2 of one.

    Example:
      >>> [bucket(n) for n in (1, 128, 129, 200, 300)]
      [128, 128, 192, 256, 384]
    """
    size = CAPACITY
    while size < positions:
        size *= 2
    return size * 3 // 4 if CAPACITY < positions <= size * 3 // 4 else size


def token_rows(prompts: Any, vocabulary: int) -> list[np.ndarray]:
    """The tokens of each sequence of `prompts`, as of `prefill`."""
    expected = "int[batch, time], or token ids of each sequence, not empty"
    if hasattr(prompts, "ndim"):
        if prompts.ndim != 2:
            raise InputError("input_ids", expected=expected, found=list(prompts.shape))
        prompts = np.asarray(prompts)
    rows = [np.asarray(row) for row in prompts]
    if not rows or not all(row.ndim == 1 and row.size for row in rows):
        raise InputError("input_ids", expected=expected, found=f"{prompts!r:.60}")
    for row in rows:
        if row.dtype.kind not in "iu" or row.min() < 0 or row.max() >= vocabulary:
            found = f"up to {row.max()}" if row.dtype.kind in "iu" else row.dtype
            raise InputError("input_ids", expected=f"0 to {vocabulary - 1}", found=found)
    return rows


def _seeds(seed: int | Sequence[int], batch: int) -> np.ndarray:
    seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
    first = seeds[:1] if isinstance(seed, int) else seeds
    if len(seeds) != batch or not all(0 <= one < 1 << 32 for one in first):
        raise InputError("seed", expected=f"0 to {(1 << 32) - 1}, or {batch} of them", found=seed)
    return np.array([one % (1 << 32) for one in seeds], np.uint32)


def empty(model: Decoder, seeds: np.ndarray, capacity: int) -> State:
    """Sequences without tokens; `seeds` are uint32[batch]."""
    batch = len(seeds)

    def make(seeds: jax.Array) -> State:
        return State(
            cache=model.new_cache(batch, capacity),
            tokens=jnp.zeros((batch, capacity), jnp.int32),
            logprobs=jnp.zeros((batch, capacity), jnp.float32),
            lengths=jnp.zeros(batch, jnp.int32),
            logits=jnp.zeros((batch, model.config.vocab_size), jnp.float32),
            seeds=seeds,
            done=jnp.zeros(batch, bool),
        )

    shapes = jax.eval_shape(make, seeds)
    places = over_mesh(model, shapes)
    if places is None:
        return make(jnp.asarray(seeds))
    zeros = jax.tree.map(lambda a, at: jnp.zeros(a.shape, a.dtype, device=at), shapes, places)
    here = jax.make_array_from_callback(seeds.shape, places.seeds, lambda index: seeds[index])
    return replace(zeros, seeds=here)


@partial(jax.jit, static_argnames="graph", donate_argnames="state")
def read_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    state: State,
    ids: Int[Array, "batch time"],
    counts: Int[Array, " batch"],
    lengths: Int[Array, " batch"],
) -> State:
    """A chunk of prompts: of each sequence's ids the first `counts`, of prompts of `lengths`."""
    return in_place(_after, graph, weights, state, ids, counts, lengths)


def _after(
    model: Decoder,
    state: State,
    ids: Int[Array, "batch time"],
    counts: Int[Array, " batch"],
    lengths: Int[Array, " batch"],
) -> State:
    hidden, cache = model.hidden(ids, state.cache, state.lengths, lengths, counts)
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
    some = (counts > 0)[:, None]
    order = jnp.arange(ids.shape[1], dtype=jnp.int32)
    places = jnp.where(order < counts[:, None], state.lengths[:, None] + order, state.capacity)
    return replace(
        state,
        cache=cache,
        tokens=state.tokens.at[jnp.arange(len(ids))[:, None], places].set(ids, mode="drop"),
        lengths=state.lengths + counts,
        logits=jnp.where(some, model.logits(last[:, 0]), state.logits),
        done=jnp.zeros_like(state.done),
    )
