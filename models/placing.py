"""Where the states of sequences lie over the mesh of a model's weights.

Keys and values of a head are where its weights are, if these are split between heads; sequences
are split by what splits activations. All else of a state every device has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jentropy import modes
from jentropy.pallas_kernels import ShardedTensor

HEADS = 5  # axes of a cache that has one for them: layers, batch, heads, slots, width


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
        devices = math.prod(mesh.shape[axis] for axis in weight.batch)
        batch = weight.batch if weight.batch and array.shape[1] % devices == 0 else None
        by_heads = array.ndim == HEADS and weight.split == -2 and not weight.gathered
        spec = (None, batch, weight.axes) if by_heads else (None, batch)
        return NamedSharding(mesh, PartitionSpec(*spec))

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
