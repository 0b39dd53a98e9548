"""Suite `matmul`: x @ w from compressed weights, beside the dense BF16 product.

On an accelerator a product is timed as one of a stack of layers, so large together that no cache
holds them, which one compiled program goes through: dispatch costs nothing, and the next layer's
input depends on the last one's output. The limit is the bandwidth that copying an array reaches in
the same run.

On a CPU the reference backend decodes the whole weight for every product: its figures say what a
test costs, not what a kernel reaches, and the shapes are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jentropy
from jentropy.formats import (
    ASYMMETRIC_INT4,
    FORMATS,
    FP8_BLOCK,
    FP8_ROW,
    INT4_GROUP,
    INT8_ROW,
    MXFP8,
    Format,
    QuantizedTensor,
    quantize,
)
from jentropy.pallas_kernels import default_backend

from .measure import Result, median_seconds

SMALL_SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))  # [N, K]
SHAPES = {  # of Llama-3-8B: [N, K]
    "q+k+v": (6144, 4096),
    "o": (4096, 4096),
    "gate+up": (28672, 4096),
    "down": (4096, 14336),
}
SMALL_ROWS, ROWS = (1, 16, 256), (1, 8, 16, 64, 256, 1024, 4096)  # M
FORMATS_TIMED: dict[str, Format] = {
    "BF16": FORMATS["BF16"],
    "FP8 row": FP8_ROW,
    "FP8 128x128": FP8_BLOCK,
    "MXFP8": MXFP8,
    "INT8 row": INT8_ROW,
    "INT4 g128": INT4_GROUP,
    "INT4 g128 zeros": ASYMMETRIC_INT4,
}
STACK_BYTES = 1 << 29  # of BF16 weights that a program goes through
COPY_BYTES = 1 << 30


def run(source: str | Path) -> list[Result]:
    """Times of products, their ratios to the dense ones and to the limit; `source` is not used."""
    del source
    return list(_on_cpu() if jax.default_backend() == "cpu" else _on_accelerator())


def _on_cpu() -> Iterator[Result]:
    product = jax.jit(partial(jentropy.matmul, transpose_w=True))
    for n, k in SMALL_SHAPES:
        dense = _normal(0, (n, k))
        weight = jentropy.to_resident(dense)
        for m in SMALL_ROWS:
            x = _normal(1, (m, k))
            ours = median_seconds(partial(product, x, weight))
            theirs = median_seconds(partial(product, x, dense))
            yield Result(
                name=f"{default_backend()} M={m} N={n} K={k}", figures=_times(ours, theirs)
            )


def _on_accelerator() -> Iterator[Result]:
    bandwidth = copy_bandwidth()
    yield Result(name="copy", figures={"gigabytes_per_second": bandwidth / 1e9})
    for layer, (n, k) in SHAPES.items():
        layers = max(2, math.ceil(STACK_BYTES / (2 * n * k)))
        dense = _normal(0, (layers, n, k)) * 0.02
        theirs = {m: _seconds(_dense_product, m, dense) for m in ROWS}
        for name, number_format in FORMATS_TIMED.items():
            weight = _resident(dense, number_format)
            for m in ROWS:
                ours = _seconds(partial(jentropy.matmul, transpose_w=True), m, weight)
                limit = weight.nbytes / layers / bandwidth
                yield Result(
                    name=f"{name} {layer} M={m} N={n} K={k}",
                    figures={
                        **_times(ours, theirs[m]),
                        "of_bandwidth": limit / ours,
                        "bits_per_weight": weight.bits_per_weight,
                    },
                )


def _times(ours: float, theirs: float) -> dict[str, float]:
    return {
        "microseconds": 1e6 * ours,
        "dense_microseconds": 1e6 * theirs,
        "speedup": theirs / ours,
    }


def _normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _resident(dense: jax.Array, number_format: Format) -> Any:
    if not number_format.parameters:
        return jentropy.to_resident(dense)
    codes = quantize(dense, number_format)
    return jentropy.to_resident(QuantizedTensor(number_format=number_format, codes=codes))


def _dense_product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.dot(x, w.T, preferred_element_type=jnp.float32).astype(x.dtype)


def _seconds(product: Callable[[Any, Any], Any], m: int, weights: Any) -> float:
    """Time of one product, of as many as there are weights in the stack."""
    layers, _, k = weights.shape

    @jax.jit
    def through(x: jax.Array, weights: Any) -> jax.Array:
        def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
            y = product(x, w)
            return x + y[:, :1] * jnp.bfloat16(1e-3), None  # the next one must wait

        return jax.lax.scan(layer, x, weights)[0]

    return median_seconds(partial(through, _normal(1, (m, k)), weights)) / layers


def copy_bandwidth() -> float:
    """Bytes a second that are read and written when an array is copied."""
    array = jnp.zeros(COPY_BYTES // 4, jnp.uint32)
    copy = jax.jit(lambda array: array + 1)
    return 2 * COPY_BYTES / median_seconds(partial(copy, array))
