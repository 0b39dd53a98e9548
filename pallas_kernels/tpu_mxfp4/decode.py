"""A tile of MXFP4 to dense numbers on TPU.

Numbers of E5M2 are those of the product. Rows next to each other are in the same byte of words, of
one or of two; they become bfloat16 that lacks 2^112, which a product with the power of the column
makes up for. Signs of zeros, and blocks that words lack, come in afterwards.
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
Words = UInt32[Array, "8 columns"]


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


def kernel(words: Any, delta: Any, power: Any, out: Any, *, native: int, factors: int) -> None:
    """One tile: words [KT / 8, NT] to out [KT, NT]."""
    rows, columns = out.shape
    codes = [(power[...] + i) >> (factors - 1) for i in range(factors)]
    scales = [_powers_of_two(code) for code in codes]

    def decode_chunk(chunk: Array) -> None:
        deltas = [delta[c, pl.ds(chunk, 1), :] for c in range(columns // LANES)]
        shared = jnp.concatenate(
            [jnp.broadcast_to(one, (SUBLANES, LANES)) for one in deltas], axis=1
        )
        for g in range(CHUNK // nibbles.ROWS):
            at = pl.multiple_of(chunk * (CHUNK // 8) + g * SUBLANES, SUBLANES)
            numbers = operand(words[pl.ds(at, SUBLANES), :], shared, native)
            both = pltpu.bitcast(numbers, jnp.uint32)
            halves = both[:SUBLANES], both[SUBLANES:]
            for t in range(nibbles.BYTES):
                numbers = rows_of(*halves, t) if native else pairs(*halves, t)
                for scale in scales:
                    numbers *= scale
                first = pl.multiple_of(chunk * CHUNK + (t * BLOCK + g * HALF), HALF)
                out[pl.ds(first, HALF), :] = numbers.astype(out.dtype)

    together = math.gcd(rows // CHUNK, TOGETHER)

    @pl.loop(np.int32(0), np.int32(rows // CHUNK // together))
    def _(i: Array) -> None:
        for chunk in range(together):
            decode_chunk(i * together + chunk)


def rows_of(first: Words, second: Words, byte: int) -> Array:
    """A byte of two words, the rows of the first above those of the second, as `pairs`."""
    each = []
    for words in (first, second):
        left = pltpu.bitcast(_shifted(words, 3 * HALF // 2 - 8 * byte), jnp.int32)
        bits = left >> 3 & np.int32(-0x70200000)  # sign, and 7 bits
        each.append(lax.bitcast_convert_type(bits, jnp.float32))
    return jnp.concatenate(each, axis=0).astype(jnp.bfloat16)


def _powers_of_two(power: Int32[Array, "1 columns"]) -> Array:
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
    power = weight.array("base") + BIASES
    numbers = call(
        partial(kernel, native=native, factors=1 + weight.option("large")),
        weight,
        *(words, weight.arrays["delta"], power),
        name="decode_mxfp4",
        grid=(pl.cdiv(columns, tile_columns), rows // tile_rows),
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
