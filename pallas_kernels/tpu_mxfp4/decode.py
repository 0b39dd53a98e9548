"""A tile of MXFP4 to dense numbers on TPU.

Numbers of E5M2 are those of the product. Two rows next to each other are in the same byte of two
words: they become bfloat16 that lacks 2^112, which a product with the power of the column makes up
for. Where words have codes as they are, E5M2 is converted by instructions, to words of two blocks,
which are read a row apart. Signs of zeros, and blocks that words lack, come in afterwards.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32, Shaped, UInt32

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.bf16 import BIAS
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu import nibbles
from jentropy.pallas_kernels.tpu.calls import call, spec

from . import layout, other_blocks, zeros
from .matmul import operand
from .orders import BLOCK, CHUNK
from .plan import decode_tile

BIASES = 127 - 15  # of float32 over E5M2's
HALF = 16
TOGETHER = 4  # chunks of a loop's body
Words = UInt32[Array, "8 wide"]


def pairs(first: Words, second: Words, byte: int) -> Array:
    """A byte of two words, row for row, as bfloat16 that is 2^-112 of E5M2."""
    low = _shifted(first, HALF // 2 - 8 * byte) & np.uint32(0xFF00)
    high = _shifted(second, 3 * HALF // 2 - 8 * byte) & np.uint32(0xFF000000)
    both = low | high
    bits = both & np.uint32(0x80008000) | both >> np.uint32(3) & np.uint32(0x0FE00FE0)
    return pltpu.bitcast(bits, jnp.bfloat16)


def _shifted(words: Words, left: int) -> Words:
    if not left:
        return words
    return words << np.uint32(left) if left > 0 else words >> np.uint32(-left)


def kernel(
    words: Any, delta: Any, power: Any, out: Any, *scratch: Any, native: int, factors: int
) -> None:
    """One tile: words [KT / 8, NT] to out [KT, NT]; native ones by way of pairs."""
    rows, columns = out.shape
    parts = [(power[...] + i) >> (factors - 1) for i in range(factors)]
    scales = [_powers_of_two(part) for part in parts]

    def put(chunk: Any, block: int, g: int, here: slice, numbers: Array) -> None:
        first = pl.multiple_of(chunk * CHUNK + (block * BLOCK + g * HALF), HALF)
        out[pl.ds(first, HALF), here] = numbers.astype(out.dtype)

    def numbers_of(chunk: Any, g: int, here: slice) -> Array:
        tiles = range(here.start // LANES, here.stop // LANES)
        deltas = [delta[c, pl.ds(chunk, 1), :] for c in tiles]
        shared = [jnp.broadcast_to(one, (SUBLANES, LANES)) for one in deltas]
        at = pl.multiple_of(chunk * (CHUNK // 8) + g * SUBLANES, SUBLANES)
        packed = words[pl.ds(at, SUBLANES), here]
        return operand(packed, jnp.concatenate(shared, axis=1), native)

    def by_pairs(chunk: Any, g: int) -> None:
        both = pltpu.bitcast(numbers_of(chunk, g, slice(0, columns)), jnp.uint32)
        for t in range(nibbles.BYTES):
            numbers = pairs(both[:SUBLANES], both[SUBLANES:], t)
            for scale in scales:
                numbers *= scale
            put(chunk, t, g, slice(0, columns), numbers)

    def by_rows(chunk: Any, g: int) -> None:
        for c in range(0, columns, LANES):
            here = slice(c, c + LANES)
            numbers = numbers_of(chunk, g, here).astype(jnp.bfloat16)
            numbers *= jnp.concatenate([scales[0][:, here]] * (nibbles.ROWS // HALF), axis=0)
            own = scratch[0].at[c // LANES, g]
            own[...] = pltpu.bitcast(numbers, jnp.uint32)
            for t in (0, 2):
                for block, numbers in enumerate(two_blocks(own, t // 2), t):
                    put(chunk, block, g, here, numbers)

    together = math.gcd(rows // CHUNK, TOGETHER)

    @pl.loop(np.int32(0), np.int32(rows // CHUNK // together))
    def _(i: Array) -> None:
        for chunk in range(together):
            for g in range(CHUNK // nibbles.ROWS):
                (by_rows if native else by_pairs)(i * together + chunk, g)


def two_blocks(pairs: Any, at: int) -> list[Array]:
    """Sixteen rows of two blocks, whose numbers are the halves of words, as bfloat16.

    Args:
      pairs: uint32[32, 128], of each row of blocks a word for two of them.
    """
    even, odd = (pairs[pl.ds(first + at, SUBLANES, stride=4), :] for first in (0, 2))
    low = even & np.uint32(0xFFFF) | odd << np.uint32(16)
    high = even >> np.uint32(16) | odd & np.uint32(0xFFFF0000)
    return [pltpu.bitcast(each, jnp.bfloat16) for each in (low, high)]


def _powers_of_two(power: Int32[Array, "1 wide"]) -> Array:
    """BF16[16, NT] of powers."""
    code = (power + BIAS).astype(jnp.uint32) << np.uint32(7)
    return pltpu.bitcast(
        jnp.broadcast_to(code | code << HALF, (SUBLANES, code.shape[1])), jnp.bfloat16
    )


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded to whole chunks."""
    words, native = weight.arrays["words"], weight.option("native")
    if native and not targets.current_tpu().native_e2m1:
        return layout.decode(weight.alone(), dtype)
    rows, columns = 8 * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = decode_tile(weight)
    pairs = tile_columns // LANES, CHUNK // nibbles.ROWS, nibbles.ROWS // 2, LANES
    power = weight.array("base") + (0 if native else BIASES)
    numbers = call(
        partial(kernel, native=native, factors=1 if native else 1 + weight.option("large")),
        weight,
        *(words, weight.arrays["delta"], power),
        name="decode_mxfp4",
        grid=(pl.cdiv(columns, tile_columns), pl.cdiv(rows, tile_rows)),
        in_specs=[
            spec(weight, (tile_rows // 8, tile_columns), lambda j, k: (k, j)),
            spec(
                weight,
                (tile_columns // LANES, tile_rows // CHUNK, LANES),
                lambda j, k: (j, k, 0),
            ),
            pl.BlockSpec((1, tile_columns), lambda j, k, *_: (0, j)),
        ],
        out_spec=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
        out=jax.ShapeDtypeStruct((rows, columns), dtype),
        scratch=[pltpu.VMEM(pairs, jnp.uint32)] if native else [],
        interpret=interpret,
    )
    if "signs" in weight.arrays:
        numbers = _with_signs(numbers, weight.array("signs"))
    if "others" in weight.arrays:
        numbers = other_blocks.put_numbers(numbers, weight.array("others"))
    return numbers


def _with_signs(numbers: Array, signs: Array) -> Array:
    unsigned = jnp.dtype(f"uint{8 * numbers.dtype.itemsize}")
    bits = lax.bitcast_convert_type(numbers, unsigned)
    minus = zeros.unpack(bits == 0, signs).astype(unsigned)
    return lax.bitcast_convert_type(bits | minus << (8 * unsigned.itemsize - 1), numbers.dtype)
