"""A tile of NVFP4 to dense numbers on TPU: the numbers of `formats.dequantize`.

Scales come with their factors, rounded once as float32, and with the power of two that codes lack.
A register of rows is of all blocks of a chunk: what is written next to each other, as bfloat16 two
rows to a word, is read a block apart.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Shaped, UInt32

from jentropy.pallas_kernels import targets
from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES, SUBLANES
from jentropy.pallas_kernels.tpu.calls import call, spec

from . import layout
from .layout import BLOCK, BLOCKS, CHUNK, scales
from .matmul import codes_of
from .plan import decode_tile, readable

APART = BLOCKS + 1  # rows from one register to the next: an odd stride is read at full speed


def kernel(words: Any, scale: Any, out: Any, rows: Any, *, native: int) -> None:
    """One tile: words [KT / 8, NT] to out [KT, NT], by way of rows [tiles, 256 or 128, 128]."""
    narrow = out.dtype == jnp.bfloat16

    @pl.loop(np.int32(0), np.int32(out.shape[0] // CHUNK))
    def _(chunk: Array) -> None:
        block = pl.multiple_of(chunk * BLOCKS, BLOCKS)
        word = pl.multiple_of(chunk * (CHUNK // 8), CHUNK // 8)
        for c in range(0, out.shape[1], LANES):
            here = pl.ds(c, LANES)
            factors, own = scale[pl.ds(block, BLOCKS), here], rows.at[c // LANES]
            for i, codes in enumerate(codes_of(words, word, here, native)):
                numbers = codes.astype(jnp.float32)
                both = [(numbers[h * BLOCKS : (h + 1) * BLOCKS] * factors) for h in range(2)]
                registers = [in_pairs(*both)] if narrow else both
                for at, register in enumerate(registers, i * len(registers)):
                    own[at * APART : at * APART + BLOCKS, :] = register
            for b in range(BLOCKS):
                first = b % 2 * SUBLANES + b // 2 if narrow else b
                part = own[pl.ds(first, own.shape[0] // APART, stride=APART), :]
                at = pl.multiple_of(chunk * CHUNK + b * BLOCK, BLOCK)
                out[pl.ds(at, BLOCK), here] = pltpu.bitcast(part, jnp.bfloat16) if narrow else part


def in_pairs(
    low: Float32[Array, "16 columns"], high: Float32[Array, "16 columns"]
) -> UInt32[Array, "16 columns"]:
    """As bfloat16 in the halves of words: first the even rows, then the odd ones."""
    low, high = (pltpu.bitcast(a.astype(jnp.bfloat16), jnp.uint32) for a in (low, high))
    even = low & np.uint32(0xFFFF) | high << np.uint32(16)
    odd = low >> np.uint32(16) | high & np.uint32(0xFFFF0000)
    return jnp.concatenate([even, odd], axis=0)


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded to whole tiles."""
    if not readable(weight, targets.current_tpu()):
        return layout.decode(weight.alone(), dtype)
    words, native = weight.arrays["words"], weight.option("native")
    rows, columns = 8 * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = decode_tile(weight)
    narrow = jnp.dtype(dtype) == jnp.bfloat16
    numbers = scales(weight.array("scale"), weight.array("factor"), weight)
    numbers *= np.float32(layout.unit(weight))
    return call(
        partial(kernel, native=native),
        weight,
        *(words, numbers),
        name="decode_nvfp4",
        grid=(pl.cdiv(columns, tile_columns), rows // tile_rows),
        in_specs=[
            spec(weight, (tile_rows // 8, tile_columns), lambda j, k: (k, j)),
            pl.BlockSpec((tile_rows // BLOCK, tile_columns), lambda j, k, *_: (k, j)),
        ],
        out_spec=pl.BlockSpec((tile_rows, tile_columns), lambda j, k, *_: (k, j)),
        out=jax.ShapeDtypeStruct((rows, columns), dtype),
        scratch=[
            pltpu.VMEM((tile_columns // LANES, BLOCK // 2 * APART, LANES), jnp.uint32)
            if narrow
            else pltpu.VMEM((tile_columns // LANES, BLOCK * APART, LANES), jnp.float32)
        ],
        interpret=interpret,
    )
