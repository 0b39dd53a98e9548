"""Layers that differ in numbers only lie in one stack, and one compiled program runs them all.

A model's layers come in patterns: all alike (Llama), five local ones and a global one (Gemma 3),
dense ones before those with experts (DeepSeek). Loops run over what repeats, so that a program
grows with the layers that differ and not with the layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jentropy.pallas_kernels import ResidentTensor

C = TypeVar("C")
Step = Callable[[int, Int[Array, ""], C], C]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """Which layers share a stack.

    Attributes:
      members: of every kind, the numbers of its layers in the order in which they are stacked.
    """

    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, layers: Iterable[Hashable]) -> Kinds:
        """Layers by what they must have in common, first layer first."""
        members: dict[Hashable, list[int]] = {}
        for number, layer in enumerate(layers):
            members.setdefault(layer, []).append(number)
        return cls(members=tuple(map(tuple, members.values())))

    def run(self, step: Step[C], carry: C) -> C:
        """carry = step(kind, place in its stack, carry) for every layer in order."""
        layers = sorted(
            (number, kind, at)
            for kind, numbers in enumerate(self.members)
            for at, number in enumerate(numbers)
        )
        places = np.array([at for _, _, at in layers], np.int32)
        for runs, repeats in periods([kind for _, kind, _ in layers]):
            size = sum(count for _, count in runs)
            here, places = places[: repeats * size], places[repeats * size :]
            carry = _loop(_period(step, runs), carry, jnp.asarray(here.reshape(repeats, size)))
        return carry


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
        size = max(repeats, key=lambda size: (repeats[size] > 1, repeats[size] * size, -size))
        size = size if repeats[size] > 1 else 1
        parts.append((runs[:size], repeats[size]))
        runs = runs[size * repeats[size] :]
    return parts


def _loop(step: Callable[[C, Any], C], carry: C, each: Array) -> C:
    """A loop over the first axis, which compiles its step once; a single step needs none."""
    if each.shape[0] == 1:
        return step(carry, each[0])
    return jax.lax.scan(lambda carry, one: (step(carry, one), None), carry, each)[0]


def _period(step: Step[C], runs: Sequence[tuple[int, int]]) -> Callable[[C, Array], C]:
    def period(carry: C, places: Int[Array, " layers"]) -> C:
        for kind, count in runs:
            here, places = places[:count], places[count:]
            carry = _loop(lambda carry, at, kind=kind: step(kind, at, carry), carry, here)
        return carry

    return period


def take(stack: nnx.Module, at: Int[Array, ""]) -> nnx.Module:
    """One layer out of a stack of them: a module whose compressed weights stay where they lie.

    Arrays are sliced, behind a barrier: their products are the same bits as those of weights that
    are decoded, whatever XLA would make of slice and product together.
    """

    def one(weight: Any) -> Any:
        if isinstance(weight, ResidentTensor):
            return weight[at]
        return jax.lax.optimization_barrier(
            jax.lax.dynamic_index_in_dim(weight, at, keepdims=False)
        )

    graph, state = nnx.split(stack)
    is_weight = lambda node: isinstance(node, ResidentTensor)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(one, state, is_leaf=is_weight))
