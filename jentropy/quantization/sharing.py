"""Weights of a model to quantised tensors by a recipe, bits shared among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jentropy import modes
from jentropy.errors import InputError
from jentropy.formats import QuantizedTensor

from . import rates
from .allocations import Equal
from .knob import turned
from .quantizing import CLOSE_ENOUGH, quantize_weight, sampled
from .recipe import Recipe
from .statistics import Statistics


@modes.standard
def quantize_weights(
    weights: Mapping[str, Any],
    recipe: Recipe,
    statistics: Mapping[str, Statistics] | None = None,
    *,
    bits: float | None = None,
    loss: Callable[[Mapping[str, Any]], float] | None = None,
    key: Any = None,
    keep: Callable[[QuantizedTensor], Any] | None = None,
) -> dict[str, Any]:
    """Weights by a recipe, bits shared among them by its allocation.

    No more than one weight is held at a time, some rows of each where bits are looked for, and what
    is kept of each: `weights` and `statistics` may read or compute what they are asked for.

    Args:
      weights: float [..., rows, columns] by name.
      recipe: how.
      statistics: of those that were calibrated, by name.
      bits: mean coded bits of a weight; None: as the recipe says.
      loss: of a model with some weights in place of its own, for allocations that ask it.
      key: of `jax.random`; every weight draws its own.
      keep: what is kept of a quantised tensor, such as `jentropy.compress`; None: itself.

    Returns:
      A quantised tensor for each, or what `keep` made of it.

    Raises:
      InputError, UnsupportedError: see `quantize_weight`, with the name of the tensor.

    Example:
      >>> from jentropy.quantization import RECIPES
      >>> list(quantize_weights({"w": jnp.eye(32)}, RECIPES["rtn"]))
      ['w']
    """
    told = _Told(weights, statistics or {})
    key = jax.random.key(0) if key is None else key
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(weights)}
    allocation = recipe.allocation or Equal()
    shares = allocation.shares(weights, recipe, told, bits, loss)

    def one_of(name: str, weight: Any, knob: float) -> QuantizedTensor:
        share = shares[name]
        try:
            return quantize_weight(
                weight, share.recipe, told[name], factor=knob * share.factor, key=keys[name]
            )
        except InputError as error:
            raise error.at(tensor=name) from error

    def all_of(knob: float) -> dict[str, Any]:
        made = ((name, one_of(name, weight, knob)) for name, weight in weights.items())
        return {name: keep(tensor) if keep else tensor for name, tensor in made}

    if bits is None or allocation.is_settled:
        return all_of(1.0)
    samples, sizes = dict[str, Array](), dict[str, int]()
    for name, weight in weights.items():
        samples[name], sizes[name] = jnp.array(sampled(weight)), weight.size

    def estimate(knob: float) -> float:
        parts = ((name, one_of(name, sample, knob)) for name, sample in samples.items())
        total = sum(rates.estimated(part) * sizes[name] for name, part in parts)
        return total / sum(sizes.values())

    knob = turned(estimate, bits)
    made = all_of(knob)
    beyond = rates.coded(made) - bits  # what histograms of samples did not say
    if abs(beyond) <= CLOSE_ENOUGH:
        return made
    del made
    return all_of(knob * 2.0**beyond)


class _Told(Mapping[str, Statistics]):
    """Statistics of all weights: those that are known, else of independent inputs."""

    def __init__(self, weights: Mapping[str, Any], known: Mapping[str, Statistics]):
        self._weights, self._known = weights, known

    def __getitem__(self, name: str) -> Statistics:
        if name in self._known:
            return self._known[name]
        return Statistics.identity(self._weights[name].shape[-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
