"""x @ w from window12 on Hopper.

Slots are bfloat16 numbers that lack a power of two, their row's: one product each gives the weight,
exactly, in the registers that WGMMA reads. Escapes have slots of 0. One at a time they are put into
a fragment of zeros, which is multiplied with the 16 columns of x that it stands over: the same
accumulator sums both, and the weights are not read again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float, UInt32

from jentropy.codecs import window12
from jentropy.pallas_kernels import mosaic_gpu
from jentropy.pallas_kernels.layouts import fragments
from jentropy.pallas_kernels.layouts.gpu_window12 import (
    FRAGMENT_BIT,
    HALF_BIT,
    LISTED,
    PLACE_BIT,
)
from jentropy.pallas_kernels.resident import ResidentTensor

from . import gpu_stream
from .gpu_plan import Plan

WORDS, LISTS = 0, 1  # arrays of the decoder


def slots_of(load: Any, index: tuple[Any, ...]) -> tuple[UInt32[Array, "4 128"], ...]:
    """Pairs of slots of a block, by fragments."""
    words = (
        load(WORDS, (*index, pl.ds(4 * i, 4)), mosaic_gpu.STRIDED) for i in range(window12.WORDS)
    )
    return window12.unpack_words(*words)


def block(scale: Array, load: Any, b: int, *, interpret: bool) -> BFloat16[Array, "64 64"]:
    """A block of weights."""
    return mosaic_gpu.to_fragments(slots_of(load, (b,)), interpret=interpret) * scale


def patch(load: Any, columns: int, multiply: Any, *, interpret: bool) -> None:
    """Adds what a step's escapes contribute."""
    places = mosaic_gpu.places(interpret=interpret)
    for i in range(columns // LISTED):

        def one(e: Any, _: Any, i: int = i) -> Any:
            entry = load(LISTS, (i, e))
            code = (entry & np.uint32(0xFFFF)) << ((entry >> HALF_BIT & np.uint32(1)) * 16)
            place = entry >> PLACE_BIT & np.uint32(fragments.PLACES - 1)
            word = jnp.where(places == place, code, np.uint32(0))
            column = (entry >> FRAGMENT_BIT).astype(jnp.int32) * fragments.COLUMNS
            a = mosaic_gpu.to_fragments((word,), interpret=interpret)
            multiply(a, i * LISTED + column)
            plgpu.wgmma_wait(0)
            return ()

        lax.fori_loop(np.int32(1), load(LISTS, (i, 0)).astype(jnp.int32) + 1, one, ())


def multiply(
    x: BFloat16[Array, "M K"],
    weight: ResidentTensor,
    plan: Plan,
    *,
    out_dtype: Any,
    interpret: Any,
) -> Float[Array, "M N"]:
    """x times the transpose of the packed matrix, both padded."""
    arrays, interpreted = weight.arrays, bool(interpret)
    decoder = gpu_stream.Decoder(
        arrays=(arrays["words"], arrays["escapes"]),
        columns=(fragments.BLOCK, LISTED),
        rows=(arrays["scale"],),
        index=weight.index,
        begin=lambda load_rows: load_rows(0),
        block=partial(block, interpret=interpreted),
        patch=partial(patch, interpret=interpreted),
        name="matmul_window12",
    )
    return gpu_stream.multiply(x, decoder, plan, out_dtype=out_dtype, interpret=interpret)
