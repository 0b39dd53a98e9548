"""Tokens from a model: chosen as asked for, at once or as they come.

    prefill   prompts of any lengths into a `State`
    sample    chooses the next token of every sequence
    step      adds one token to every sequence
    advance   both, so many times, in one jitted call
    stream    in bursts, as long as readers like to wait
    generate  from prompts to all new tokens

A program does not depend on how many tokens are asked for, nor on the numbers of the sampling.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from jentropy import modes
from jentropy.errors import InputError

from .decoder import Decoder
from .placing import in_place
from .sampling import Sampling, draw
from .state import State, prefill, refuse_more, renewed, token_rows, until_outgrown, with_room

STOPS = 8  # ids of stop tokens that there is room for, or a multiple
BURST = 16  # tokens at the most
QUICK = 0.05  # seconds that a burst may take: text that comes so is fluent
GREEDY = Sampling()


@modes.standard
def generate(
    model: Decoder,
    input_ids: Int[Array | np.ndarray, "batch time"] | Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop_tokens: Sequence[int] = (),
) -> Int[Array, "batch total"]:
    """Continues prompts.

    A sequence ends with one of the config's end tokens, or of `stop_tokens`; the pad token fills it
    up. Its tokens do not depend on the others of the batch.

    Args:
      model: the model.
      input_ids: int32[batch, time], or the tokens of each sequence: one at least.
      max_new_tokens: tokens to add.
      temperature: 0 takes the likeliest token, greater draws from softmax(logits / temperature).
      seed: of the random numbers of each sequence; or of the first, and the next has the next.
      top_k, top_p, min_p, repetition_penalty: see `Sampling`.
      stop_tokens: what ends a sequence beside the end tokens.

    Returns:
      int32[batch, longest + max_new_tokens]: prompts, new tokens behind them, padding.

    Raises:
      InputError: an empty prompt, token ids outside the vocabulary, numbers out of range, or more
        positions than the model has.

    Example:
      >>> from jentropy.models import Decoder, DecoderConfig, RopeConfig
      >>> config = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1,
      ...     num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-6,
      ...     rope=RopeConfig(theta=1e4), tie_word_embeddings=True)
      >>> model = nnx.jit(lambda: Decoder(config, rngs=nnx.Rngs(0)))()
      >>> generate(model, jnp.array([[3, 1]]), max_new_tokens=4).shape
      (1, 6)
      >>> generate(model, [[3, 1, 2], [5]], max_new_tokens=2).shape
      (2, 5)
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    if max_new_tokens < 0:
        raise InputError("max_new_tokens", expected="0 or more", found=max_new_tokens)
    rows = token_rows(input_ids, model.config.vocab_size)
    longest = max(map(len, rows)) + max_new_tokens
    refuse_more(model, longest, "prompt and new tokens")
    state = prefill(model, rows, capacity=longest, seed=seed)
    state = advance(model, state, max_new_tokens, sampling, stop_tokens=stop_tokens)
    out = np.full((len(rows), longest), model.config.pad_token_id, np.int32)
    for row, tokens, length in zip(
        out, *map(np.asarray, (state.tokens, state.lengths)), strict=True
    ):
        row[:length] = tokens[:length]
    return jnp.asarray(out)


@modes.standard
def sample(state: State, sampling: Sampling = GREEDY) -> Int[Array, " batch"]:
    """Chooses the next token of every sequence from `state.logits`.

    Args:
      state: sequences.
      sampling: how; by default the likeliest.

    Returns:
      int32[batch]. They depend on the state alone: another call gives the same.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> state = models.prefill(model, [[607, 546]], seed=5)
      >>> models.sample(state, models.Sampling(temperature=0.8, top_k=20)).shape
      (1,)
    """
    return _sample(state, numbers_of(sampling))


@modes.standard
def step(
    model: Decoder,
    state: State,
    tokens: Int[Array | np.ndarray, " batch"],
    *,
    stop_tokens: Sequence[int] = (),
) -> State:
    """Adds one token to every sequence that is not done.

    Args:
      model: the model.
      state: sequences; it is used up: `jax.tree.map(jax.numpy.copy, state)` is one to come back to.
      tokens: what is added, chosen by `sample` or otherwise.
      stop_tokens: what ends a sequence beside the config's end tokens.

    Returns:
      The state behind them.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> state = models.step(model, models.prefill(model, [[607, 546]]), np.array([5]))
      >>> state.tokens[0, :3].tolist()
      [607, 546, 5]
    """
    tokens, stops = jnp.asarray(tokens, jnp.int32), stops_of(model, stop_tokens)
    if isinstance(state.lengths, jax.core.Tracer):
        return _step(*nnx.split(model), state, tokens, stops)
    state, lengths = _prepared(model, state, 1), np.array(state.lengths)
    return renewed(model, _step(*nnx.split(model), state, tokens, stops), lengths)


@modes.standard
def advance(
    model: Decoder,
    state: State,
    new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    stop_tokens: Sequence[int] = (),
) -> State:
    """Adds tokens in one jitted call, until every sequence is done.

    Args:
      model: the model.
      state: sequences; it is used up.
      new_tokens: for each sequence, at the most.
      sampling: how they are chosen.
      stop_tokens: what ends a sequence beside the config's end tokens.

    Returns:
      The state behind them.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> state = models.advance(model, models.prefill(model, [[607, 546], [607]]), 4)
      >>> state.lengths.tolist()
      [6, 5]
    """
    state = _prepared(model, state, new_tokens)
    graph, weights = nnx.split(model)
    stops, numbers = stops_of(model, stop_tokens), numbers_of(sampling)
    while (size := until_outgrown(model, state)) is not None and size <= new_tokens:
        lengths, new_tokens = np.array(state.lengths), new_tokens - size
        state = advance_in_place(graph, weights, state, numbers, stops, np.int32(size))
        state = renewed(model, state, lengths)
    return advance_in_place(graph, weights, state, numbers, stops, np.int32(new_tokens))


@modes.standard
def stream(
    model: Decoder,
    state: State,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    stop_tokens: Sequence[int] = (),
) -> Iterator[State]:
    """Adds tokens in bursts, of one token where that takes long.

    Args:
      model: the model.
      state: sequences; it is used up.
      sampling, stop_tokens: as of `advance`.
      max_new_tokens: for each sequence, at the most.

    Yields:
      The state after each burst: what comes next uses it up.

    Example:
      >>> from jentropy import models
      >>> model = models.load(models.BUNDLED)
      >>> for state in models.stream(model, models.prefill(model, [[607, 546]]), 3):
      ...     tokens = state.tokens[0, : state.lengths[0]].tolist()
      >>> len(tokens)
      5
    """
    size = 1
    while max_new_tokens > 0 and not bool(state.done.all()):
        began = time.perf_counter()
        size = min(size, max_new_tokens)
        state = advance(model, state, size, sampling, stop_tokens=stop_tokens)
        jax.block_until_ready(state.lengths)
        max_new_tokens -= size
        is_quick = time.perf_counter() - began < QUICK
        yield state
        size = min(2 * size, BURST) if is_quick else max(1, size // 2)


def _prepared(model: Decoder, state: State, new_tokens: int) -> State:
    """The state, with room for so many tokens more."""
    lengths, done = np.asarray(state.lengths), np.asarray(state.done)
    ends = lengths + np.where(done, 0, new_tokens)
    refuse_more(model, int(ends.max()), "prompt and new tokens")
    # Sequences that are done have a slot for what is not kept.
    return with_room(model, state, int((ends + done).max()))


def numbers_of(sampling: Sampling) -> dict[str, np.ndarray]:
    """What programs are told of a sampling."""
    return {
        name: np.asarray(value, np.int32 if name == "top_k" else np.float32)
        for name, value in sampling.numbers().items()
    }


def stops_of(model: Decoder, more: Sequence[int]) -> np.ndarray:
    """Ids of stop tokens, the config's too; int32, filled up with -1."""
    ids = [*model.config.eos_token_ids, *more]
    return np.array(ids + [-1] * (-len(ids) % STOPS or STOPS * (not ids)), np.int32)


@jax.jit
def _sample(state: State, numbers: Mapping[str, Any]) -> Int[Array, " batch"]:
    return modes.automatic(_chosen, state, numbers, out=lambda: modes.spec_of(state.lengths))


@partial(jax.jit, static_argnames="graph", donate_argnames="state")
def _step(
    graph: nnx.GraphDef,
    weights: nnx.State,
    state: State,
    tokens: Int[Array, " batch"],
    stops: Int[Array, " stops"],
) -> State:
    return in_place(_added, graph, weights, state, tokens, stops)


@partial(jax.jit, static_argnames="graph", donate_argnames="state")
def advance_in_place(
    graph: nnx.GraphDef,
    weights: nnx.State,
    state: State,
    numbers: Mapping[str, Any],
    stops: Int[Array, " stops"],
    new: Int[Array, ""],
) -> State:
    """The state after `new` tokens; the program of `advance`."""

    def run(model: Decoder, state: State, numbers: Any, stops: Any, new: Any) -> State:
        def more(carry: tuple) -> jax.Array:
            state, left = carry
            return (left > 0) & ~state.done.all()

        def add(carry: tuple) -> tuple:
            state, left = carry
            return _added(model, state, _chosen(state, numbers), stops), left - 1

        return jax.lax.while_loop(more, add, (state, new))[0]

    return in_place(run, graph, weights, state, numbers, stops, new)


def _chosen(state: State, numbers: Mapping[str, Any]) -> Int[Array, " batch"]:
    came = _came(state) if "repetition_penalty" in numbers else None
    return draw(state.logits, numbers, state.seeds, state.lengths, came)


def _came(state: State) -> Bool[Array, "batch vocabulary"]:
    """Which tokens every sequence has."""
    batch, vocabulary = state.logits.shape
    is_token = jnp.arange(state.capacity) < state.lengths[:, None]
    columns = jnp.where(is_token, state.tokens, vocabulary)
    empty = jnp.zeros((batch, vocabulary), bool)
    return empty.at[jnp.arange(batch)[:, None], columns].set(True, mode="drop")


def _added(
    model: Decoder, state: State, tokens: Int[Array, " batch"], stops: Int[Array, " stops"]
) -> State:
    hidden, cache = model.hidden(tokens[:, None], state.cache, state.lengths)
    rows = jnp.arange(len(tokens))
    places = jnp.where(state.done, state.capacity, state.lengths)
    logprobs = jax.nn.log_softmax(state.logits)[rows, tokens]
    return replace(
        state,
        cache=cache,
        tokens=state.tokens.at[rows, places].set(tokens, mode="drop"),
        logprobs=state.logprobs.at[rows, places].set(logprobs, mode="drop"),
        lengths=state.lengths + ~state.done,
        logits=model.logits(hidden[:, -1]),
        done=state.done | jnp.isin(tokens, stops),
    )
