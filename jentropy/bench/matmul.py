"""Suite `matmul`: x @ w from compressed weights, beside the dense BF16 product.

On an accelerator a product is timed as one of many layers, so large together that no cache holds
them, of one compiled program; many of its runs are enqueued and awaited together.
The limit is the bandwidth that copying an array reaches in the same run. Formats that have no
kernel there are left out.

On a CPU the reference backend decodes the whole weight for every product: its figures say what a
test costs, not what a kernel reaches, and the shapes are small.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jentropy
from jentropy.pallas_kernels import default_backend
from jentropy.pallas_kernels.backends import has_kernels
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from .measure import Result, median_seconds, queued_seconds

SMALL_SHAPES = ((1024, 1024), (1024, 4096), (4096, 1024))  # [N, K]
SHAPES = {  # [N, K]
    "Llama-3-8B q+k+v": (6144, 4096),
    "Llama-3-8B o": (4096, 4096),
    "Llama-3-8B gate+up": (28672, 4096),
    "Llama-3-8B down": (4096, 14336),
    "Llama-3-70B q+k+v": (10240, 8192),
    "Llama-3-70B o": (8192, 8192),
    "Llama-3-70B gate+up": (57344, 8192),
    "Llama-3-70B down": (8192, 28672),
    "Qwen3-32B q+k+v": (10240, 5120),
    "Qwen3-32B o": (5120, 8192),
    "Qwen3-32B gate+up": (51200, 5120),
    "Qwen3-32B down": (5120, 25600),
}
ELSEWHERE = ("Llama-3-8B",)  # models of formats other than BF16
SMALL_ROWS = (1, 16, 256)  # M
ROWS = (1, 8, 16, 64, 256, 1024)
# Of the layers of a program. No two share a weight: XLA would make one product of theirs.
STACK_BYTES, MOST_LAYERS = 1 << 32, 64
COPY_BYTES = 1 << 30


def run(source: str | Path) -> Iterator[Result]:
    """Times of products, their ratios to the dense ones and to the limit; `source` is not used."""
    del source
    yield from _on_cpu() if jax.default_backend() == "cpu" else _on_accelerator()


def _on_cpu() -> Iterator[Result]:
    product = jax.jit(partial(jentropy.matmul, transpose_w=True))
    for n, k in SMALL_SHAPES:
        dense = normal(0, (n, k))
        weight = jentropy.to_resident(dense)
        for m in SMALL_ROWS:
            x = normal(1, (m, k))
            ours = median_seconds(partial(product, x, weight))
            theirs = median_seconds(partial(product, x, dense))
            yield Result(name=f"{default_backend()} M={m} N={n} K={k}", figures=times(ours, theirs))


def _on_accelerator() -> Iterator[Result]:
    bandwidth = copy_bandwidth()
    yield Result(name="copy", figures={"gigabytes_per_second": bandwidth / 1e9})
    speedups: dict[int, list[float]] = {m: [] for m in ROWS}
    for layer, (n, k) in SHAPES.items():
        dense = layers_of(n, k)
        theirs = {m: seconds(dense_product, m, dense) for m in ROWS}
        for name in formats_timed(layer):
            weight = jentropy.to_resident(weight_of(VARIANTS[name].number_format, dense[0]))
            weights = alike(weight, len(dense))
            for m in ROWS:
                ours = seconds(partial(jentropy.matmul, transpose_w=True), m, weights)
                limit = weight.nbytes / bandwidth
                if name == "BF16":
                    speedups[m].append(theirs[m] / ours)
                yield Result(
                    name=f"{name} {layer} M={m} N={n} K={k}",
                    figures={
                        **times(ours, theirs[m]),
                        "of_bandwidth": limit / ours,
                        "bits_per_weight": weight.bits_per_weight,
                    },
                )
            yield _decoding(f"{name} {layer} decode N={n} K={k}", weight, bandwidth)
    for m, values in speedups.items():
        yield Result(
            name=f"BF16 M={m}, geometric mean",
            figures={"speedup": statistics.geometric_mean(values)},
        )


def formats_timed(layer: str) -> Iterator[str]:
    """Variants that are timed with a layer: those whose codes the backend's own kernels read."""
    backend = default_backend()
    for name, variant in VARIANTS.items():
        elsewhere = variant.number_format.parameters and not layer.startswith(ELSEWHERE)
        if variant.bench and not elsewhere and has_kernels(backend, variant.number_format):
            yield name


def _decoding(name: str, weight: Any, bandwidth: float) -> Result:
    """Decode to dense, against the bytes that it reads and writes."""
    decode = jax.jit(jentropy.decode)
    taken = queued_seconds(partial(decode, weight))
    moved = weight.nbytes + math.prod(weight.shape) * weight.dtype.itemsize
    return Result(
        name=name,
        figures={"microseconds": 1e6 * taken, "of_bandwidth": moved / bandwidth / taken},
    )


def layers_of(n: int, k: int) -> list[jax.Array]:
    """Dense weights of layers alike: more than any cache holds, so many that dispatch is hidden."""
    return alike(normal(0, (n, k)) * jnp.bfloat16(0.02), layer_count(n, k))


def layer_count(n: int, k: int) -> int:
    """Of a program."""
    return max(2, min(MOST_LAYERS, math.ceil(STACK_BYTES / (2 * n * k))))


def alike(weight: Any, count: int) -> list[Any]:
    """As many weights of the same numbers, each in memory of its own."""
    copies = (jax.tree.map(jnp.copy, weight) for _ in range(count - 1))
    return [weight, *copies]


def times(ours: float, theirs: float) -> dict[str, float]:
    """Of a product and the dense one, and how much faster it is."""
    return {
        "microseconds": 1e6 * ours,
        "dense_microseconds": 1e6 * theirs,
        "speedup": theirs / ours,
    }


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal numbers, bfloat16."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def dense_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """What a user would have otherwise."""
    return jnp.dot(x, w.T, preferred_element_type=jnp.float32).astype(x.dtype)


def program(
    product: Callable[[Any, Any], Any], m: int, weights: Sequence[Any]
) -> Callable[[], list[jax.Array]]:
    """Products of layers, compiled: each has its own x, and all of every result is given back.

    The product is lowered once: layers alike share a kernel.
    """
    one = jax.jit(product)
    xs = [normal(i, (m, w.shape[1])) for i, w in enumerate(weights)]

    @jax.jit
    def layers(xs: Sequence[jax.Array], weights: Sequence[Any]) -> list[jax.Array]:
        return [one(x, w) for x, w in zip(xs, weights, strict=True)]

    run = partial(layers, xs, weights)
    jax.block_until_ready(run())
    return run


def seconds(product: Callable[[Any, Any], Any], m: int, weights: Sequence[Any]) -> float:
    """Time of one product, as a layer of a model has it."""
    return queued_seconds(program(product, m, weights)) / len(weights)


def copy_bandwidth() -> float:
    """Bytes a second that are read and written when an array is copied."""
    array = jnp.zeros(COPY_BYTES // 4, jnp.uint32)
    copy = jax.jit(lambda array: array + 1)
    return 2 * COPY_BYTES / queued_seconds(partial(copy, array))
