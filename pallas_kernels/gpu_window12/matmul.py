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
from jaxtyping import Array, BFloat16, UInt32

from jentropy.codecs import window12
from jentropy.pallas_kernels.fused import Product
from jentropy.pallas_kernels.hopper import fragments, registers, stream
from jentropy.pallas_kernels.hopper.plan import HopperPlan
from jentropy.pallas_kernels.resident import ResidentTensor

from .layout import FRAGMENT_BIT, HALF_BIT, LISTED, PLACE_BIT

WORDS, LISTS = 0, 1  # arrays of the source


def words_of(load: Any, b: int) -> tuple[UInt32[Array, "4 128"], ...]:
    """Words of block b of a step."""
    return tuple(
        load(WORDS, (b, pl.ds(4 * i, 4)), registers.STRIDED) for i in range(window12.WORDS)
    )


def block(
    scale: Array, words: tuple[UInt32[Array, "4 128"], ...], *, interpret: bool
) -> BFloat16[Array, "64 64"]:
    """A block of weights."""
    slots = window12.unpack_words(*words)
    return registers.to_fragments(slots, interpret=interpret) * scale


def patch(load: Any, columns: int, multiply: Any, *, interpret: bool) -> None:
    """Adds what a step's escapes contribute; during each product the next entry is read."""
    places = registers.places(interpret=interpret)
    for i in range(columns // LISTED):
        count = load(LISTS, (i, 0)).astype(jnp.int32)

        def one(e: Any, entry: Any, i: int = i, count: Any = count) -> Any:
            code = (entry & np.uint32(0xFFFF)) << ((entry >> HALF_BIT & np.uint32(1)) * 16)
            place = entry >> PLACE_BIT & np.uint32(fragments.PLACES - 1)
            word = jnp.where(places == place, code, np.uint32(0))
            column = (entry >> FRAGMENT_BIT).astype(jnp.int32) * fragments.COLUMNS
            a = registers.to_fragments((word,), interpret=interpret)
            multiply(a, i * LISTED + column)
            following = load(LISTS, (i, jnp.minimum(e + 1, count)))
            plgpu.wgmma_wait(0)
            return following

        lax.fori_loop(np.int32(1), count + 1, one, load(LISTS, (i, 1)))


def source(weight: ResidentTensor, plan: HopperPlan, product: Product) -> stream.Source:
    """How weights become fragments."""
    arrays, interpreted = weight.arrays, bool(product.interpret)
    return stream.Source(
        arrays=(arrays["words"], arrays["escapes"]),
        columns=(fragments.BLOCK, LISTED),
        rows=(arrays["scale"],),
        which=weight.which(),
        begin=lambda load_rows: registers.columns_of(load_rows(0), fragments.BLOCK),
        words=words_of,
        block=lambda scale, words, b: [block(scale, words, interpret=interpreted)],
        patch=partial(patch, interpret=interpreted),
        name="matmul_window12",
    )
