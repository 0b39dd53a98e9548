"""What the matrices of a model meet: sums that quantisers ask for, over the tokens of some text.

Which they are `watching` says. Layers run one by one, so that no more is kept than what each of
them is given; derivatives are taken on the way back, a layer at a time. Layers of one kind share
both programs, and projections of one input its sums. A batch's products are float32 whatever the
model computes in, and added to float32 sums, one number a batch: of 100,000 tokens some fifty.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

import jentropy
from jentropy import modes
from jentropy.checkpoints.progress import Progress, expect
from jentropy.errors import InputError

from .caches import Cache, Turn
from .decoder import Decoder, turning
from .kinds import take
from .layers import TOKENS
from .names import LAYERS
from .state import token_rows
from .watching import Inputs, Sums, added, summed, watch, zeros

BATCH = 2048  # tokens that go through a layer at once
HEAD = "lm_head"
SAVED_SECONDS = 60.0  # between two times that sums are written


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Sums over the inputs of a model's matrices: a pytree.

    Attributes:
      kinds: of every kind of layers, and last of what comes after them, `inputs`: by the paths of
        the projections that share an input (joined by commas) `hessian` float32[layers, K, K],
        `low` and `high` float32[layers, K] and `rows` int32[layers], of experts [layers, experts,
        ...];
        and `squares`: by path float32[layers], or [layers, experts].
      read: sequences so far.
      members: of every kind the numbers of its layers.
      outputs: of every path in a kind, the width of its result.
      text: a hash of all sequences.
    """

    kinds: list[dict[str, dict[str, Any]]]
    read: int = field(metadata={"static": True})
    members: tuple[tuple[int, ...], ...] = field(metadata={"static": True})
    outputs: tuple[tuple[tuple[str, int], ...], ...] = field(metadata={"static": True})
    text: str = field(metadata={"static": True}, default="")

    def addresses(self) -> Iterator[str]:
        """Of all matrices: `layers.0.self_attn.q_proj`, `layers.0.mlp.experts.7.up_proj`."""
        for kind, outputs in enumerate(self.outputs):
            for path, _ in outputs:
                squares = self.kinds[kind]["squares"][path]
                layers = self.members[kind] if kind < len(self.members) else (0,)
                for layer in layers:
                    start = f"{LAYERS}.{layer}." if kind < len(self.members) else ""
                    if squares.ndim == 1:
                        yield start + path
                        continue
                    module, _, name = path.rpartition(".")
                    for expert in range(squares.shape[1]):
                        yield f"{start}{module}.{expert}.{name}"

    def of(self, address: str) -> Sums:
        """What is known of one matrix, as means.

        Args:
          address: one of `addresses`.

        Returns:
          `hessian` float32[K, K], E[x x^T]; `low` and `high` float32[K]; `gradient` float, the
          mean square of the loss's derivatives by its outputs; `tokens` int.
        """
        kind, at, path, expert = self._place(address)
        key = next(key for key in self.kinds[kind]["inputs"] if path in key.split(","))
        index = (at,) if expert is None else (at, expert)
        inputs = self.kinds[kind]["inputs"][key].items()
        sums = {name: np.asarray(array[index]) for name, array in inputs}
        tokens, outputs = int(sums["rows"]), dict(self.outputs[kind])[path]
        squares = float(self.kinds[kind]["squares"][path][index])
        return {
            "hessian": sums["hessian"] / np.float32(max(tokens, 1)),
            "low": sums["low"],
            "high": sums["high"],
            "gradient": squares / max(tokens * outputs, 1),
            "tokens": tokens,
        }

    def _place(self, address: str) -> tuple[int, int, str, int | None]:
        parts, kind, at = address.split("."), len(self.members), 0
        if parts[0] == LAYERS:
            layer, parts = int(parts[1]), parts[2:]
            kind = next(k for k, members in enumerate(self.members) if layer in members)
            at = self.members[kind].index(layer)
        numbers = [part for part in parts if part.isdigit()]
        path = ".".join(part for part in parts if not part.isdigit())
        if path not in dict(self.outputs[kind]):
            raise InputError("no sums of a matrix", tensor=address)
        return kind, at, path, int(numbers[0]) if numbers else None

    def save(self, path: str | Path) -> None:
        """Writes the sums as a compressed checkpoint; one that is there is replaced."""
        tree = {"kinds": self.kinds, "read": self.read, "text": self.text}
        jentropy.save(path, tree, overwrite=True)


@modes.standard
def calibrate(
    model: Decoder,
    rows: Int[Array | np.ndarray, "rows time"],
    *,
    gradients: bool = True,
    batch: int | None = None,
    path: str | Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Runs a model over sequences and sums up what its matrices are given.

    Args:
      model: dense or compressed, on any device.
      rows: sequences of one length, up to TOKENS tokens of a layer's whole input.
      gradients: whether derivatives are taken, which trebles the time; else their squares are 0.
      batch: sequences at once; None: about BATCH tokens.
      path: where sums are saved from time to time and in the end; those that are there, of the
        same sequences, are gone on with.
      progress: called with the sequences read since the last call.

    Returns:
      A `Calibration`.

    Raises:
      InputError: sequences that are longer, or no tokens of the model; sums at `path` that are of
        others.
    """
    ids = np.stack(token_rows(rows, model.config.vocab_size)).astype(np.int32)
    if ids.shape[1] > TOKENS:
        raise InputError("tokens of a sequence", expected=f"up to {TOKENS}", found=ids.shape[1])
    text = hashlib.sha256(ids.tobytes()).hexdigest()[:16]
    found = replace(_nothing(model, ids.shape[1]), text=text)
    if path is not None and os.path.lexists(path):
        found = _taken_up(found, Path(path))
    expect(progress, len(ids), found.read)
    batch, saved = batch or max(1, BATCH // ids.shape[1]), time.monotonic()
    for first in range(found.read, len(ids), batch):
        part = jnp.asarray(ids[first : first + batch])
        found = _add(model, found, part, gradients=gradients)
        if progress:
            progress(len(part))
        if path is not None and time.monotonic() - saved > SAVED_SECONDS:
            found.save(path)
            saved = time.monotonic()
    if path is not None:
        found.save(path)
    return found


def _taken_up(empty: Calibration, path: Path) -> Calibration:
    tree = jentropy.decompress(jentropy.load(path))
    found = tree.get("text") if isinstance(tree, dict) else None
    kinds = tree["kinds"] if found == empty.text else None
    if kinds is None or jax.tree.map(jnp.shape, kinds) != jax.tree.map(jnp.shape, empty.kinds):
        raise InputError("sums", file=path, expected="those of this text and model", found="others")
    return replace(empty, kinds=jax.tree.map(jnp.asarray, kinds), read=tree["read"])


# One batch.


def _add(model: Decoder, found: Calibration, ids: Array, *, gradients: bool) -> Calibration:
    """The sums with those of a batch."""
    length = jnp.int32(ids.shape[1])
    tables = [turning(model.config, kind, length) for kind in model.kinds]
    stacks = [nnx.split(stack) for stack in model.layers]
    order = sorted((n, kind, at) for kind, m in enumerate(model.members) for at, n in enumerate(m))
    x, given, kinds = model.embedded(ids), [], list(found.kinds)
    for _, kind, at in order:
        turn = Turn(jnp.int32(at), jnp.int32(0), *(table[at] for table in tables[kind]))
        cache = _cache(model, kind, ids.shape)
        if gradients:
            given.append((kind, x, cache, turn))
        graph, weights = stacks[kind]
        x, kinds[kind]["inputs"] = _forward(graph, weights, x, cache, turn, kinds[kind]["inputs"])
    if gradients:
        x, kinds[-1] = _head(*_head_of(model), x, ids, kinds[-1])
        while given:
            kind, before, cache, turn = given.pop()
            graph, weights = stacks[kind]
            squares = kinds[kind]["squares"]
            x, kinds[kind]["squares"] = _backward(graph, weights, before, cache, turn, x, squares)
    return replace(found, kinds=kinds, read=found.read + len(ids))


def _cache(model: Decoder, kind: int, shape: tuple[int, ...]) -> Cache:
    """Room for the tokens of one layer."""
    return model.layers[kind].self_attn.new_cache(1, *shape, model.compute_dtype)


def _block(graph: nnx.GraphDef, weights: nnx.State, at: Array) -> nnx.Module:
    return take(nnx.merge(graph, weights), at)


@partial(jax.jit, static_argnums=0, donate_argnums=5)
def _forward(
    graph: nnx.GraphDef,
    weights: nnx.State,
    x: Float[Array, "batch time width"],
    cache: Cache,
    turn: Turn,
    sums: dict[str, Sums],
) -> tuple[Float[Array, "batch time width"], dict[str, Sums]]:
    block = _block(graph, weights, turn.at)
    inputs = Inputs(block)
    y, _ = block(x, cache, turn._replace(at=jnp.int32(0)))
    more = {key: summed(rows, sizes) for key, rows, sizes in inputs.items()}
    return y, {key: added(sums[key], more[key], turn.at) for key in sums}


@partial(jax.jit, static_argnums=0, donate_argnums=(5, 6))
def _backward(
    graph: nnx.GraphDef,
    weights: nnx.State,
    x: Float[Array, "batch time width"],
    cache: Cache,
    turn: Turn,
    g: Float[Array, "batch time width"],
    sums: dict[str, Array],
) -> tuple[Float[Array, "batch time width"], dict[str, Array]]:
    """The loss's derivatives by what a layer is given, from those by what it gives."""

    def run(x: Array, squares: dict[str, Array]) -> Array:
        block = _block(graph, weights, turn.at)
        watch(block, squares)
        return block(x, cache, turn._replace(at=jnp.int32(0)))[0]

    nothing = {path: jnp.zeros(sum_.shape[1:]) for path, sum_ in sums.items()}
    _, derive = jax.vjp(run, x, nothing)
    g, more = derive(g)
    return g, {path: sum_.at[turn.at].add(more[path]) for path, sum_ in sums.items()}


class _Head(nnx.Module):
    """What comes after the layers, as a module of its own."""

    def __init__(self, model: Decoder):
        self.norm, self.embed_tokens = model.norm, model.embed_tokens
        self.lm_head, self.config = model.lm_head, model.config

    logits = Decoder.logits

    def loss(self, x: Array, ids: Array) -> Array:
        """The sum of -ln of the probabilities of the tokens that come next."""

        @jax.checkpoint
        def one(x: Array, ids: Array) -> Array:
            chosen = jax.nn.log_softmax(self.logits(self.norm(x[None]))[0, :-1])
            return -jnp.take_along_axis(chosen, ids[1:, None], axis=-1).sum()

        return jax.lax.map(lambda each: one(*each), (x, ids)).sum()


def _head_of(model: Decoder) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(_Head(model))


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _head(
    graph: nnx.GraphDef,
    weights: nnx.State,
    x: Float[Array, "batch time width"],
    ids: Int[Array, "batch time"],
    sums: dict[str, Any],
) -> tuple[Float[Array, "batch time width"], dict[str, Any]]:
    """The loss's derivatives by what comes out of the layers, and the sums of the head's matrix."""

    def run(x: Array, squares: dict[str, Array]) -> Array:
        head = nnx.merge(graph, weights)
        watch(head, squares)
        return head.loss(x, ids)

    nothing = {path: jnp.zeros(()) for path in sums["squares"]}
    g, more = jax.grad(run, (0, 1))(x, nothing)
    squares = {path: sums["squares"][path] + more[path] for path in nothing}
    inputs = sums["inputs"]
    if inputs:
        given = nnx.merge(graph, weights).norm(x)
        inputs = {HEAD: added(inputs[HEAD], summed(given.reshape(-1, given.shape[-1]), None), 0)}
    return g, {"inputs": inputs, "squares": squares}


def _nothing(model: Decoder, length: int) -> Calibration:
    """No sums yet."""
    kinds: list[dict[str, dict[str, Any]]] = []
    outputs: list[tuple[tuple[str, int], ...]] = []
    for kind, (stack, members) in enumerate(zip(model.layers, model.members, strict=True)):
        inputs, widths = _shapes(model, kind, stack, length)
        layers, experts = len(members), dict[str, tuple[int, ...]]()
        empty: dict[str, Sums] = {}
        for key, (width, count) in inputs.items():
            lead = (layers,) if count is None else (layers, count)
            empty[key] = zeros(lead, width)
            experts |= dict.fromkeys(key.split(","), lead)
        squares = {path: jnp.zeros(experts[path], jnp.float32) for path in widths}
        kinds.append({"inputs": empty, "squares": squares})
        outputs.append(tuple(widths.items()))
    head: dict[str, dict[str, Any]] = {"inputs": {}, "squares": {}}
    if model.lm_head is not None:
        width = model.config.hidden_size
        head["inputs"][HEAD] = zeros((1,), width)
        head["squares"][HEAD] = jnp.zeros(1, jnp.float32)
        outputs.append(((HEAD, model.config.vocab_size),))
    else:
        outputs.append(())
    return Calibration(kinds=[*kinds, head], read=0, members=model.members, outputs=tuple(outputs))


def _shapes(
    model: Decoder, kind: int, stack: nnx.Module, length: int
) -> tuple[dict[str, tuple[int, int | None]], dict[str, int]]:
    """Width of every input and how many experts share it; width of every output."""
    graph, weights = nnx.split(stack)
    table = turning(model.config, model.kinds[kind], jnp.int32(length))
    found: dict[str, Any] = {}

    def run(weights: nnx.State, x: Array) -> Array:
        block = _block(graph, weights, jnp.int32(0))
        inputs = Inputs(block)
        turn = Turn(jnp.int32(0), jnp.int32(0), *(each[0] for each in table))
        y, _ = block(x, _cache(model, kind, x.shape[:2]), turn)
        for key, rows, sizes in inputs.items():
            found[key] = rows.shape[-1], None if sizes is None else len(sizes)
        found["outputs"] = inputs.outputs
        return y

    x = jax.ShapeDtypeStruct((1, length, model.config.hidden_size), model.compute_dtype)
    jax.eval_shape(run, weights, x)
    outputs = found.pop("outputs")
    return found, outputs
