"""A tile of NVFP4 to dense numbers on TPU: the numbers of `formats.dequantize`.

Scales come with their factors, rounded once as float32. A register of rows is of all blocks of a
chunk, so that its rows are stored a block apart.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Shaped

from jentropy.pallas_kernels.resident import ResidentTensor
from jentropy.pallas_kernels.tiles import LANES
from jentropy.pallas_kernels.tpu.calls import call, spec

from .layout import BLOCK, BLOCKS, CHUNK, scales
from .matmul import UNIT, codes_of
from .plan import decode_tile


def kernel(words: Any, scale: Any, out: Any, rows: Any) -> None:
    """One tile: words [KT / 8, NT] to out [KT, NT], by way of rows [256, 128]."""

    @pl.loop(np.int32(0), np.int32(out.shape[0] // CHUNK))
    def _(chunk: Array) -> None:
        block = pl.multiple_of(chunk * BLOCKS, BLOCKS)
        word = pl.multiple_of(chunk * (CHUNK // 8), CHUNK // 8)
        row = pl.multiple_of(chunk * CHUNK, CHUNK)
        for c in range(0, out.shape[1], LANES):
            here = pl.ds(c, LANES)
            own = scale[pl.ds(block, BLOCKS), here]
            for i, codes in enumerate(codes_of(words, word, here)):
                numbers = codes.astype(jnp.float32) * np.float32(UNIT)
                for half in range(2):
                    part = numbers[half * BLOCKS : (half + 1) * BLOCKS] * own
                    rows[pl.ds(2 * i + half, BLOCKS, stride=BLOCK), :] = part
            out[pl.ds(row, CHUNK), here] = rows[...].astype(out.dtype)


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded to whole tiles."""
    words = weight.arrays["words"]
    rows, columns = 8 * words.shape[-2], words.shape[-1]
    tile_rows, tile_columns = decode_tile(weight)
    numbers = scales(weight.array("scale"), weight.array("factor"), weight)
    return call(
        kernel,
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
        scratch=[pltpu.VMEM((CHUNK, LANES), jnp.float32)],
        interpret=interpret,
    )
