"""Suite `matmul`: x @ w from compressed weights, beside the dense BF16 product.

On a CPU the reference backend decodes the whole weight for every product: its figures say what a
test costs, not what a kernel reaches, and the shapes are small.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy.pallas_kernels import default_backend

from .measure import Result, median_seconds

SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))  # [N, K]
ROWS = (1, 16, 256)  # M


def run(source: str | Path) -> list[Result]:
    """Time of a product, and its ratio to the dense one's; `source` is not used."""
    del source
    backend = default_backend()
    rng = np.random.default_rng(0)
    results = []
    for n, k in SHAPES:
        dense = jnp.asarray(rng.standard_normal((n, k)) * 0.02, jnp.bfloat16)
        weight = jentropy.to_resident(dense, backend)
        product = jax.jit(partial(jentropy.matmul, transpose_w=True))
        for m in ROWS:
            x = jnp.asarray(rng.standard_normal((m, k)), jnp.bfloat16)
            ours = median_seconds(partial(product, x, weight))
            theirs = median_seconds(partial(product, x, dense))
            results.append(
                Result(
                    name=f"{backend} M={m} N={n} K={k}",
                    figures={
                        "microseconds": 1e6 * ours,
                        "dense_microseconds": 1e6 * theirs,
                        "speedup": theirs / ours,
                    },
                )
            )
    return results
