"""A weight to a quantised tensor by a recipe, at the bits that are asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jentropy import modes
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor, Step

from . import rates
from .knob import turned
from .problem import Problem, Solution
from .recipe import Recipe
from .statistics import Statistics

CLOSE_ENOUGH = 0.01  # coded bits of a weight
SAMPLED = 256  # rows of a matrix, at the least, that are quantised while bits are looked for


@modes.standard
def quantize_weight(
    weight: Float[Array | np.ndarray, "*stack rows columns"],
    recipe: Recipe,
    statistics: Statistics | None = None,
    *,
    bits: float | None = None,
    factor: float = 1.0,
    key: Any = None,
) -> QuantizedTensor:
    """A weight, or a stack of them, by a recipe.

    Args:
      weight: of layers y = x W^T; products sum over columns.
      recipe: how; see `recipes.RECIPES`.
      statistics: of its inputs; None: independent ones of unit variance.
      bits: coded bits of a weight (`rates.coded`) that its scales are made for; None: as the recipe
        says.
      factor: how much coarser it is than the recipe says, where `bits` are not given.
      key: of `jax.random`, for what is drawn; None: that of 0.

    Returns:
      What `dequantize` makes numbers of in the space of the weight.

    Raises:
      InputError: a weight of fewer than two axes; bits that the recipe cannot have.
      UnsupportedError: matrices of a stack that take different formats.

    Example:
      >>> from jentropy.quantization import RECIPES
      >>> told = quantize_weight(jnp.eye(32), RECIPES["rtn"])
      >>> told.shape, round(float(told.dequantize()[0, 0]), 2)
      ((32, 32), 1.0)
    """
    if weight.ndim < 2:
        raise InputError("weight", expected="two axes or more", found=list(weight.shape))
    numbers = jnp.asarray(weight).astype(jnp.float32)
    told = Statistics.identity(weight.shape[-1]) if statistics is None else statistics
    key = jax.random.key(0) if key is None else key
    if bits is not None:
        sample = sampled(numbers)
        factor = turned(lambda knob: rates.estimated(_whole(sample, recipe, told, knob, key)), bits)
        made = _whole(numbers, recipe, told, factor, key)
        beyond = rates.coded(made) - bits  # what the histogram of a sample did not say
        if abs(beyond) < CLOSE_ENOUGH:
            return made
        factor *= 2.0**beyond
    return _whole(numbers, recipe, told, factor, key)


def sampled(weight: Any) -> Any:
    """Some rows of a matrix, or of each of a stack, evenly: its bits and errors are about theirs.

    Example:
      >>> sampled(jnp.zeros((1024, 8))).shape
      (256, 8)
    """
    step = max(1, weight.shape[-2] // SAMPLED)
    return weight[..., ::step, :]


def _whole(
    weight: Array, recipe: Recipe, statistics: Statistics, factor: float, key: Any
) -> QuantizedTensor:
    """A stack, matrix after matrix."""
    stack = weight.shape[:-2]
    if not stack:
        return _matrix(weight, recipe, statistics, factor, key)
    each = [
        _matrix(weight[at], recipe, statistics.of(at), factor, jax.random.fold_in(key, i))
        for i, at in enumerate(np.ndindex(stack))
    ]
    first = each[0].number_format
    if any(one.number_format != first for one in each):
        raise UnsupportedError(
            "matrices of a stack",
            expected="one format",
            found=" and ".join(sorted({one.number_format.name for one in each})),
            hint="quantize them one by one",
        )
    codes = {
        name: jnp.stack([one.codes[name] for one in each]).reshape(
            *stack, *each[0].codes[name].shape
        )
        for name in each[0].codes
    }
    parameters = tuple(
        dataclasses.replace(p, block=p.blocks(2)) for p in first.parameters
    )  # each matrix has its own
    number_format = dataclasses.replace(first, parameters=parameters)
    return QuantizedTensor(number_format=number_format, codes=codes).check()


def _matrix(
    weight: Array, recipe: Recipe, statistics: Statistics, factor: float, key: Any
) -> QuantizedTensor:
    """One matrix: transformed, pruned, expressed; what undoes the transforms is in its format."""
    steps: list[Step] = []
    beside: dict[str, Any] = {}
    for i, transform in enumerate(recipe.transforms):
        there = transform.forward(weight, statistics, jax.random.fold_in(key, i), f"transform{i}_")
        weight, statistics = there.weight, there.statistics
        if there.step is not None:
            steps.append(there.step)
            beside |= there.codes
    mask = None
    if recipe.pruning is not None:
        weight, mask = recipe.pruning.prune(weight, statistics)
    problem = Problem(
        weight=weight,
        statistics=statistics,
        scales=recipe.scales,
        rounding=recipe.rounding,
        mask=mask,
        factor=factor,
        key=key,
    )
    solution: Solution = recipe.alphabet.solve(problem)
    steps += solution.number_format.transforms
    number_format = dataclasses.replace(solution.number_format, transforms=tuple(steps))
    return QuantizedTensor(number_format=number_format, codes={**solution.codes, **beside}).check()
