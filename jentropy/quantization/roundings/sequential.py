"""Column after column, each making up for the errors of those before it: GPTQ, LDLQ.

With E[x x^T] = U D U^T, U unit upper triangular, the weighted error of a row is

    sum over k of d_k (e_k + sum over j < k of e_j u_jk)^2,    e = weight - number

and column k takes the number nearest to its weight plus that sum. Columns come in blocks: within
one they are corrected one by one, and a product corrects each block for all before it.

With a slope a number costs d_k times its squared error and the bits of its code, for which the
codes of a first pass are counted; the three numbers around the wanted one are weighed.

References:
  Frantar et al. 2023, GPTQ, arXiv 2210.17323 (damping, act-order); Chee et al. 2023, QuIP, arXiv
  2307.13304 (LDLQ, and that both are the same).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt

from jentropy.formats import ElementFormat
from jentropy.quantization.feedback import DAMPING, root_of
from jentropy.quantization.grid import Grid
from jentropy.quantization.statistics import Statistics

from . import levels
from .nearest import Nearest
from .rounding import Rounding

COLUMNS = 128  # of a block: its [rows, COLUMNS] stay in cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequential(Rounding):
    """GPTQ's and LDLQ's rounding, on any grid.

    Example:
      >>> Sequential(act_order=True).damping
      0.01
    """

    damping: float = DAMPING  # of the mean of E[x^2], added to its diagonal
    act_order: bool = False  # columns by falling E[x^2], not from the first to the last
    slope: float = 0.0  # what a bit costs, 1 as at high rate; 0: bits cost nothing

    def round(
        self,
        weight: Float32[Array, "rows columns"],
        grid: Grid,
        statistics: Statistics,
        mask: Bool[Array, "rows columns"] | None,
        key: Any,
    ) -> UInt[Array, "rows columns"]:
        """See `Rounding`."""
        if statistics.hessian is None and not self.slope:
            return Nearest().round(weight, grid, statistics, mask, key)
        diagonal = statistics.diagonal
        order = jnp.argsort(-diagonal) if self.act_order else jnp.arange(diagonal.size)
        upper, power = _factors(statistics, order, self.damping)
        places = _places(weight, grid, mask, order, upper)
        if self.slope:
            for _ in range(2):
                bits = levels.code_bits(places, grid.number_format.element)
                places = _places(
                    weight, grid, mask, order, upper, power, bits, jnp.float32(self.slope)
                )
        return levels.codes(places, grid.number_format.element)


def _factors(
    statistics: Statistics, order: Int32[Array, " columns"], damping: float
) -> tuple[Float32[Array, "columns columns"], Float32[Array, " columns"]]:
    """U without its diagonal, and D, of the damped matrix with its columns in an order."""
    if statistics.hessian is None:
        columns = order.size
        return jnp.zeros((columns, columns), jnp.float32), jnp.ones(columns, jnp.float32)
    hessian = jnp.asarray(statistics.hessian, jnp.float32)
    root = root_of(hessian[order][:, order], damping)
    diagonal = jnp.diagonal(root)
    return jnp.triu(root / diagonal[None, :], 1), jnp.square(diagonal)


@jax.jit
def _places(
    weight: Float32[Array, "rows columns"],
    grid: Grid,
    mask: Bool[Array, "rows columns"] | None,
    order: Int32[Array, " columns"],
    upper: Float32[Array, "columns columns"],
    power: Float32[Array, " columns"] | None = None,
    bits: Float32[Array, " levels"] | None = None,
    slope: Float32[Array, ""] | None = None,
) -> Int32[Array, "rows columns"]:
    """Places of the numbers among the element's, in order; see `levels`."""
    element, (rows, columns) = grid.number_format.element, weight.shape
    unit, zero = grid.affine((rows, columns))
    padding = ((0, 0), (0, -columns % COLUMNS))

    def laid(array: Array, filler: float = 0.0) -> Array:
        return jnp.pad(array[:, order], padding, constant_values=filler)

    given, unit, zero = laid(weight), laid(unit, 1.0), laid(zero)
    kept = laid(jnp.ones_like(weight) if mask is None else mask.astype(jnp.float32), 1.0)
    size = given.shape[1]
    upper = jnp.pad(upper, (0, size - columns))
    price = jnp.zeros((1, size), jnp.float32)
    if power is not None:
        # A bit is worth 2 ln 2 of the error, which is a twelfth of a squared unit.
        worth = slope * (2 * np.log(2) / 12) * jnp.square(unit[:, :columns]).mean() * power.mean()
        price = jnp.pad((worth / power)[None, :], padding)

    def block(errors: Array, start: Array) -> tuple[Array, Array]:
        def part(array: Array) -> Array:
            at = (jnp.int32(0), start)
            return jax.lax.dynamic_slice(array, at, (array.shape[0], COLUMNS))

        own, units, zeros, stay, prices = map(part, (given, unit, zero, kept, price))
        ahead = part(upper)
        among = jax.lax.dynamic_slice_in_dim(ahead, start, COLUMNS)
        wanted = own + jnp.matmul(errors, ahead, precision=jax.lax.Precision.HIGHEST)

        def column(at: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            wanted, found, lost = state

            def of(array: Array) -> Array:
                return jax.lax.dynamic_index_in_dim(array, at, 1, keepdims=False)

            u, z = of(units), of(zeros)
            target = of(wanted) * of(stay) / u + z
            place = levels.nearest(target, element)
            if bits is not None:
                place = _cheapest(target, place, of(prices) / (u * u), bits, of(stay), element)
            number = (levels.numbers(place, element) - z) * u
            error = of(own) - number
            wanted = wanted + error[:, None] * jax.lax.dynamic_slice_in_dim(among, at, 1)
            return (
                wanted,
                jax.lax.dynamic_update_slice_in_dim(found, place[:, None], at, 1),
                jax.lax.dynamic_update_slice_in_dim(lost, error[:, None], at, 1),
            )

        start_of = wanted, jnp.zeros(wanted.shape, jnp.int32), jnp.zeros_like(wanted)
        _, found, lost = jax.lax.fori_loop(0, COLUMNS, column, start_of)
        at = (jnp.int32(0), start)
        return jax.lax.dynamic_update_slice(errors, lost, at), found

    starts = jnp.arange(0, size, COLUMNS, dtype=jnp.int32)
    _, blocks = jax.lax.scan(block, jnp.zeros_like(given), starts)
    found = blocks.transpose(1, 0, 2).reshape(rows, size)[:, :columns]
    return found[:, jnp.argsort(order)]


def _cheapest(
    target: Float32[Array, " rows"],
    place: Int32[Array, " rows"],
    price: Float32[Array, " rows"],
    bits: Float32[Array, " levels"],
    stay: Float32[Array, " rows"],
    element: ElementFormat,
) -> Int32[Array, " rows"]:
    """The place, or one beside it, that costs least; where a mask is 0 the place itself."""
    around = jnp.clip(place[None, :] + jnp.array([0, -1, 1])[:, None], 0, bits.size - 1)
    errors = jnp.square(levels.numbers(around, element) - target[None, :])
    best = jnp.argmin(errors + price[None, :] * bits[around], axis=0)
    cheapest = jnp.take_along_axis(around, best[None, :], axis=0)[0]
    return jnp.where(stay > 0, cheapest, place)
