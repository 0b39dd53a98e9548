"""The best path of codes through a trellis, every row at once (Viterbi), with feedback of errors.

With an upper triangular `feedback` U (the Cholesky factor of an inverse Hessian, as sequential
rounding has it), column j is to be rounded to

    target(j) = w(j) - sum over i < j of e(i) U(i, j)        e(j) = (target(j) - q(j)) / U(j, j)

and the loss of a row is the sum of e^2. What has been rounded so far differs from survivor to
survivor: each keeps its own targets for the columns of a window. Of a window's best path the first
block of columns is kept, and columns behind it get its errors together; the next window begins
there, so that every choice has seen some columns that follow. The cost of a path is its loss and
`slope` times the bits of its codes.

A. Duel-Hallen and C. Heegard, Delayed decision-feedback sequence estimation, 1989.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, UInt8

from jentropy.formats.trellises import trellis

BLOCK = 64  # columns that are kept of a window
WIDE_BLOCK = 256  # the same where there is no feedback, which makes steps cheap
FORESIGHT = 12  # columns that a window has more, for each bit of a state: paths have met by then
NO_PATH = 1e30
AT_ONCE = 1 << 25  # rows times columns of a window times states, in memory at a time


@partial(jax.jit, static_argnames=("states", "block"))
def best_paths(
    targets: Float32[Array, "rows columns"],
    levels: Float32[Array, " codes"],
    step: Float32[Array, ""],
    bits: Float32[Array, " codes"],
    slope: Float32[Array, ""],
    feedback: Float32[Array, "columns columns"] | None = None,
    *,
    states: int = 8,
    block: int | None = None,
) -> UInt8[Array, "rows columns"]:
    """Codes of rows.

    Args:
      targets: the weights.
      levels: number of each code in an even state, about (2 k + 1/2) step, k being 0 in the middle.
      step: between numbers.
      bits: what each code costs.
      slope: loss that a bit is worth.
      feedback: U; None: the identity.
      states: of the trellis, a key of `CHECKS`.
      block: columns of a block; None: what is usual.

    Returns:
      Places in `levels`.
    """
    rows, columns = targets.shape
    usual = WIDE_BLOCK if feedback is None else BLOCK
    block = min(usual if block is None else block, columns)
    blocks = -(-columns // block)
    window = block + (FORESIGHT * (states.bit_length() - 1) if blocks > 1 else 0)
    extra = (blocks - 1) * block + window - columns
    # Columns that there are not have scale 0: they are free, whatever they are rounded to.
    upper = None if feedback is None else jnp.pad(feedback, ((0, extra), (0, extra)))
    scale = jnp.pad(jnp.ones(columns) if feedback is None else jnp.diag(feedback), (0, extra))
    search = partial(_through_window, step_size=step, states=states, kept=block)

    def one_block(carry, start):
        work, state = carry
        part = lax.dynamic_slice(work, (start, 0), (window, work.shape[1]))
        scales = lax.dynamic_slice(scale, (start,), (window,))
        if upper is None:
            codes, _, state = search(part, None, scales, state, levels, bits, slope)
            return (work, state), codes
        strip = lax.dynamic_slice(upper, (start, 0), (window, upper.shape[1]))
        inner = lax.dynamic_slice(strip, (0, start), (window, window))
        codes, errors, state = search(part, inner, scales, state, levels, bits, slope)
        moved = jnp.einsum("br,bc->cr", errors, strip[:block], precision="highest")
        return (work - moved, state), codes

    def slab(work):
        first = jnp.zeros(work.shape[1], jnp.int32)
        starts = jnp.arange(0, blocks * block, block)
        _, codes = lax.scan(one_block, (work, first), starts)
        return codes.reshape(blocks * block, -1)[:columns].T

    together = max(1, min(rows, AT_ONCE // (window * states)))
    slabs = -(-rows // together)
    work = jnp.pad(targets, ((0, slabs * together - rows), (0, extra)))
    work = work.reshape(slabs, together, columns + extra).transpose(0, 2, 1)
    return lax.map(slab, work).reshape(slabs * together, columns)[:rows]


def _through_window(part, inner, scales, state, levels, bits, slope, *, step_size, states, kept):
    """Codes and errors [kept, rows] of the first columns of a window, and the states then."""
    shape = trellis(states)
    previous = shape.previous
    picked = 2 * previous + shape.parities  # of the branches of all states
    mirror = np.where(np.arange(states) & 1, -1.0, 1.0).astype(np.float32)[:, None]
    rows = part.shape[1]
    count = levels.shape[0]
    zero = count // 2

    def branches(targets, scale):
        """Cost and code of both parities, from every target: [targets, 2, rows]."""
        place = targets / (2 * step_size) - 0.25 + zero
        found = []
        for parity in (0, 1):
            nearest = 2 * jnp.round((place - parity) / 2).astype(jnp.int32) + parity
            inward = nearest - 2 * jnp.sign(nearest - zero)
            best = None
            for code in (nearest, inward):
                code = jnp.clip(code, parity, count - 2 + parity)
                error = (levels[code] - targets) / jnp.where(scale == 0, 1, scale)
                cost = jnp.where(scale == 0, 0, error * error + slope * bits[code])
                if best is None:
                    best = cost, code
                else:
                    better = cost < best[0]
                    best = jnp.where(better, cost, best[0]), jnp.where(better, code, best[1])
            found.append(best)
        costs, codes = (jnp.stack(each, 1) for each in zip(*found, strict=True))
        return costs, codes

    def step(carry, now):
        cost, ahead = carry
        target, scale, row, at = now
        if inner is None:
            costs, codes = branches(target[None] * mirror[:2], scale)
            costs = jnp.tile(costs, (states // 2, 1, 1))
            codes = jnp.tile(codes, (states // 2, 1, 1))
            own = target
        else:
            own = lax.dynamic_index_in_dim(ahead, at, 0, keepdims=False)
            costs, codes = branches(own * mirror, scale)
        total = (cost[:, None] + costs).reshape(2 * states, rows)
        codes = codes.reshape(2 * states, rows)
        one, other = total[picked[:, 0]], total[picked[:, 1]]
        second = other < one
        best = jnp.where(second, other, one)
        code = jnp.where(second, codes[picked[:, 1]], codes[picked[:, 0]])
        best = best - best.min(0, keepdims=True)
        if inner is not None:
            sign = jnp.where(second, mirror[previous[:, 1]], mirror[previous[:, 0]])
            mine = jnp.where(second, own[previous[:, 1]], own[previous[:, 0]])
            error = (mine - sign * levels[code]) / jnp.where(scale == 0, 1, scale)
            ahead = jnp.where(second, ahead[:, previous[:, 1]], ahead[:, previous[:, 0]])
            ahead = ahead - row[:, None, None] * error[None]
        return (best, ahead), (second, code.astype(jnp.uint8))

    width = part.shape[0]
    start = jnp.where(jnp.arange(states)[:, None] == state[None], 0.0, NO_PATH).astype(jnp.float32)
    ahead = None if inner is None else jnp.broadcast_to(part[:, None], (width, states, rows))
    lines = (part, scales, part if inner is None else inner, jnp.arange(width))
    (cost, _), (seconds, codes) = lax.scan(step, (start, ahead), lines)
    last = cost.argmin(0).astype(jnp.int32)

    def back(state, now):
        second, code = now
        mine = jnp.take_along_axis(second, state[None], 0)[0]
        code = jnp.take_along_axis(code, state[None], 0)[0]
        before = jnp.asarray(previous, jnp.int32)[state, mine.astype(jnp.int32)]
        return before, (code, before)

    _, (codes, before) = lax.scan(back, last, (seconds, codes), reverse=True)
    then = last if kept == width else before[kept]
    codes, before = codes[:kept], before[:kept]
    if inner is None:
        return codes, None, then
    chosen = jnp.where(before & 1 == 1, -1.0, 1.0) * levels[codes.astype(jnp.int32)]
    return codes, _errors(part[:kept], chosen, inner[:kept, :kept], scales[:kept]), then


def _errors(part, chosen, inner, scales):
    """Errors [block, rows] of the numbers chosen."""

    def step(left, now):
        row, at, scale, number = now
        error = (left[at] - number) / jnp.where(scale == 0, 1, scale)
        return left - row[:, None] * error[None], error

    places = jnp.arange(part.shape[0])
    return lax.scan(step, part, (inner, places, scales, chosen))[1]
