"""Dense arrays from window12 on Hopper: escapes are set afterwards, in place."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from jentropy.pallas_kernels import bf16
from jentropy.pallas_kernels.hopper import dense, fragments, registers
from jentropy.pallas_kernels.resident import ResidentTensor

from .layout import entries
from .matmul import block, words_of


def decode(
    weight: ResidentTensor, dtype: Any, interpret: Any = False
) -> Shaped[Array, "rows columns"]:
    """The packed matrix, padded."""
    packed = dense.Packed(
        arrays=(weight.arrays["words"],),
        columns=(fragments.BLOCK,),
        rows=(weight.arrays["scale"],),
        which=weight.which(),
        begin=lambda load_rows: registers.columns_of(load_rows(0), fragments.BLOCK),
        block=lambda scale, load, b: block(scale, words_of(load, b), interpret=bool(interpret)),
        name="decode_window12",
    )
    out = dense.decode(packed, dtype, interpret)
    row, column, code = entries(weight.array("escapes"))
    # As integers: no conversion may touch a NaN.
    bits = jnp.uint16 if jnp.dtype(dtype).itemsize == 2 else jnp.uint32
    out, numbers = (lax.bitcast_convert_type(a, bits) for a in (out, bf16.numbers(code, dtype)))
    return lax.bitcast_convert_type(out.at[row, column].set(numbers, mode="drop"), dtype)
