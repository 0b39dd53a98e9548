"""Where the states of sequences lie over the mesh of a model's weights.

Keys and values of a head are where its weights are, if these are split between heads; sequences
are split by what splits activations. All else of a state every device has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jentropy import modes
from jentropy.pallas_kernels import ShardedTensor
from jentropy.pallas_kernels.sharded import over_devices

Axes = tuple[str, ...]
HEADS = 5  # axes of a cache that has one for them: layers, batch, heads, slots, width


class Lies(NamedTuple):
    """How sequences and heads are split.

    Attributes:
      mesh: the mesh.
      sequences, heads: axes of it, none where all devices have all.
    """

    mesh: Mesh | AbstractMesh
    sequences: Axes
    heads: Axes


def over_mesh(model: Any, state: Any) -> Any:
    """Shardings of a state's arrays; None of a model that lies over no mesh.

    Args:
      model: a `Decoder`.
      state: a `State`, its arrays without data perhaps.

    Returns:
      The same `State` with shardings in the places of its arrays.
    """
    own = [_of_attention(layers.self_attn) for layers in model.layers]
    if not any(own):
        return None
    mesh = next(weight.mesh for weight in own if weight)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(weight: ShardedTensor, array: Any) -> NamedSharding:
        heads = array.shape[2] if array.ndim == HEADS else 1
        lies = _lies(weight, array.shape[1], heads)
        spec = (None, lies.sequences or None, lies.heads or None)
        return NamedSharding(mesh, PartitionSpec(*spec[: 3 if lies.heads else 2]))

    made = jax.tree.map(lambda _: everywhere, state)
    caches = [
        jax.tree.map(lambda array, weight=weight: place(weight, array), cache)
        for weight, cache in zip(own, state.cache, strict=True)
    ]
    return replace(made, cache=tuple(caches))


def in_place(
    run: Callable[..., Any], graph: nnx.GraphDef, weights: nnx.State, state: Any, *arguments: Any
) -> Any:
    """run(model, state, *arguments): a state, where the one lay that it was given and used up.

    Args:
      run: what is computed, of a model and a state.
      graph, weights: of the model.
      state: a `State`.
      arguments: further arrays.
    """

    def merged(weights: nnx.State, *arguments: Any) -> Any:
        return run(nnx.merge(graph, weights), *arguments)

    new = modes.automatic(merged, weights, state, *arguments, out=state.specs)
    if modes.explicit_mesh(weights, new) is not None:
        return new
    places = over_mesh(nnx.merge(graph, weights), new)
    return new if places is None else jax.lax.with_sharding_constraint(new, places)


def _of_attention(attention: Any) -> ShardedTensor | None:
    """The weight that says how keys and values are split: that of keys, or any."""
    variables = jax.tree.leaves(
        nnx.state(attention), is_leaf=lambda node: isinstance(node, ShardedTensor)
    )
    keys = getattr(attention, "k_proj", None)
    if keys is not None and isinstance(keys.weight.get_value(), ShardedTensor):
        return keys.weight.get_value()
    return next((each for each in variables if isinstance(each, ShardedTensor)), None)


def how_lies(weights: Iterable[Any], batch: int, heads: int) -> Lies | None:
    """How sequences and heads are split.

    Args:
      weights: of an attention; the first that lies over a mesh says how.
      batch, heads: how many sequences and heads there are; what the devices do not divide is whole.

    Returns:
      None if no weight lies over a mesh.
    """
    weight = next((each for each in weights if isinstance(each, ShardedTensor)), None)
    return None if weight is None else _lies(weight, batch, heads)


def _lies(weight: ShardedTensor, batch: int, heads: int) -> Lies:
    def dividing(axes: Axes, count: int) -> Axes:
        return () if count % math.prod(weight.mesh.shape[axis] for axis in axes) else axes

    by_heads = weight.axes if weight.split == -2 else ()
    return Lies(weight.mesh, dividing(weight.batch, batch), dividing(by_heads, heads))


def on_devices(
    lies: Lies,
    mix: Callable[..., jax.Array],
    q: Float[Array, "batch kv_heads group time width"],
    k: Float[Array, "batch kv_heads slots width"],
    v: Float[Array, "batch kv_heads slots value_width"],
    positions: Int[Array, "*queries time"],
    slots: Int[Array, "*keys slots"],
    window: Int[Array, ""] | int | None,
    sinks: Float[Array, "kv_heads group"] | None,
) -> Float[Array, "batch kv_heads group time value_width"]:
    """`mix` of the same arguments, by every device for its sequences and heads."""
    sequences, heads = lies.sequences or None, lies.heads or None
    own = PartitionSpec(sequences, heads)

    def places(rows: jax.Array) -> PartitionSpec:
        return PartitionSpec(sequences if rows.ndim > 1 and len(rows) > 1 else None)

    specs = own, own, own, places(positions), places(slots), PartitionSpec(), PartitionSpec(heads)
    run = over_devices(lies.mesh, mix, specs, own)
    return run(q, k, v, positions, slots, window, sinks)
