"""Layers that differ in numbers only lie in one stack, and one compiled program runs them all.

A model's layers come in patterns: all alike (Llama), five local ones and a global one (Gemma 3),
dense ones before those with experts (DeepSeek). Loops run over what repeats, so that a program
grows with the layers that differ and not with the layers. The members of a kind are the numbers
of its layers, in the order in which they are stacked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from jentropy.pallas_kernels import ResidentTensor, ShardedTensor, layer_of

Members = tuple[tuple[int, ...], ...]


def members_of(layers: Iterable[Hashable]) -> Members:
    """The members of every kind.

    Args:
      layers: of each what it must have in common with others of its kind.

    Example:
      >>> members_of(["local", "local", "global", "local"])
      ((0, 1, 3), (2,))
    """
    members: dict[Hashable, list[int]] = {}
    for number, layer in enumerate(layers):
        members.setdefault(layer, []).append(number)
    return tuple(map(tuple, members.values()))


def periods(kinds: Sequence[int]) -> list[tuple[list[tuple[int, int]], int]]:
    """What repeats in a sequence.

    Returns:
      Parts of it, in order: runs of a period, as (kind, layers), and how often the period comes.

    Example:
      >>> periods([0, 0, 1, 0, 0, 1, 0])
      [([(0, 2), (1, 1)], 2), ([(0, 1)], 1)]
    """
    runs = [(kind, len(list(same))) for kind, same in itertools.groupby(kinds)]
    parts = []
    while runs:
        repeats = {
            size: next(i for i in itertools.count(1) if runs[i * size :][:size] != runs[:size])
            for size in range(1, len(runs) + 1)
        }
        # The shortest period of what most runs repeat; a run where nothing does.
        size = max(repeats, key=lambda size: (repeats[size] > 1) * repeats[size] * size or 1 / size)
        parts.append((runs[:size], repeats[size]))
        runs = runs[size * repeats[size] :]
    return parts


def run(members: Members, step: Callable[..., Any], carry: Any) -> Any:
    """carry = step(kind, carry, its place in the kind's stack) for every layer in order."""
    layers = sorted((n, kind, at) for kind, m in enumerate(members) for at, n in enumerate(m))
    places = jnp.array([at for _, _, at in layers], jnp.int32)
    for runs, repeats in periods([kind for _, kind, _ in layers]):
        end = repeats * sum(count for _, count in runs)
        here, places = places[:end].reshape(repeats, -1), places[end:]
        carry = _loop(partial(_period, step, runs), carry, here)
    return carry


def _period(
    step: Callable[..., Any], runs: Sequence[tuple[int, int]], carry: Any, places: Array
) -> Any:
    for kind, count in runs:
        here, places = places[:count], places[count:]
        carry = _loop(partial(step, kind), carry, here)
    return carry


def _loop(step: Callable[[Any, Array], Any], carry: Any, each: Array) -> Any:
    """A loop over the first axis, which compiles its step once; a single step needs none."""
    if len(each) == 1:
        return step(carry, each[0])
    return jax.lax.scan(lambda carry, one: (step(carry, one), None), carry, each)[0]


def take(stack: nnx.Module, at: Int[Array, ""]) -> nnx.Module:
    """One layer out of a stack of them: a module whose compressed weights stay where they lie.

    Arrays are sliced, but for matrices of experts.
    """

    def one(weight: Any) -> Any:
        if isinstance(weight, ResidentTensor | ShardedTensor):
            return weight.layer(at)
        return layer_of(weight, at)

    graph, state = nnx.split(stack)
    is_resident = lambda node: isinstance(node, ResidentTensor | ShardedTensor)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(one, state, is_leaf=is_resident))
