"""What a product takes with weights of each alphabet: costs of an allocation that minds time.

    menu = (OfFormat(number_format=MXFP4), OfFormat(number_format=FORMATS["BF16"]))
    seconds = seconds_of(menu)
    Knapsack(menu=menu, costs=seconds, bits=sum(seconds) / 2)

gives every matrix the alphabet that loses least while a token takes no longer than half of the
weights in either. The limit is a mean over weights, in seconds.

References:
  OHQ, arXiv 2309.01945.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

import jentropy
from jentropy.quantization import Recipe, quantize_weight
from jentropy.quantization.alphabets import Alphabet

from .measure import queued_seconds

SHAPE = (4096, 4096)


def seconds_of(
    menu: Sequence[Alphabet],
    shape: tuple[int, int] = SHAPE,
    rows: int = 1,
    backend: str | None = None,
) -> tuple[float, ...]:
    """Seconds for each weight that a product takes on this device.

    Args:
      menu: alphabets.
      shape: of the matrix that is measured.
      rows: of what is multiplied by it.
      backend: see `to_resident`.

    Returns:
      A number for each alphabet: `costs` of a `Knapsack`.
    """
    weight = jax.random.normal(jax.random.key(0), shape)
    x = jnp.ones((rows, shape[1]), jnp.bfloat16)
    product = jax.jit(partial(jentropy.matmul, transpose_w=True))
    found = []
    for alphabet in menu:
        made = quantize_weight(weight, Recipe(alphabet=alphabet))
        resident = jentropy.to_resident(made, backend)
        seconds = queued_seconds(partial(product, x, resident))
        found.append(seconds / weight.size)
    return tuple(found)
