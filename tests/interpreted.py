"""Pallas kernels in interpret mode, as programs that are compiled once for weights alike.

An interpreted kernel compiles for many times as long as it runs: tests call these, with
`compiled_quickly`. One that patches what plans depend on needs shapes of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jentropy
from jentropy.pallas_kernels import ResidentTensor, targets

from .quickly import OPTIONS


@partial(jax.jit, static_argnames=("target", "options"))
def product(x: Any, w: ResidentTensor, *, target: str, options: tuple[Any, ...]) -> jax.Array:
    """`jentropy.matmul` on the TPU that this process is taken for, which programs depend on."""
    return jentropy.matmul(x, w, **dict(options))


def arguments(x: Any, w: ResidentTensor, **options: Any) -> dict[str, Any]:
    """What `product` takes."""
    given = tuple(sorted(options.items()))
    return {"x": x, "w": w, "target": targets.current_tpu().name, "options": given}


def multiply(x: Any, w: ResidentTensor, **options: Any) -> jax.Array:
    """`jentropy.matmul`."""
    return product(**arguments(x, w, **options))


def _decode(w: ResidentTensor, target: str, options: tuple[Any, ...]) -> jax.Array:
    return jentropy.decode(w, *options)


DECODE = {
    # Older emitters pass bfloat16 through float32, which payloads of NaN do not survive.
    payloads: jax.jit(
        _decode,
        static_argnames=("target", "options"),
        compiler_options={name: True for name in OPTIONS if payloads and "emitters" in name},
    )
    for payloads in (False, True)
}


def decode(w: ResidentTensor, dtype: Any, interpret: Any) -> jax.Array:
    """`jentropy.decode`."""
    run = DECODE[not w.number_format.parameters and dtype != jnp.float32]
    return run(w, target=targets.current_tpu().name, options=(dtype, interpret))
