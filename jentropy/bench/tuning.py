"""`bench --suite matmul --tune`: the fastest configuration of each product, measured on this GPU.

What is found is written beside the package, by device kind, where `decode_matmul.tuning` reads it;
after each layer, so that an interrupted run leaves what it had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jentropy
from jentropy.errors import UnsupportedError
from jentropy.pallas_kernels import default_backend
from jentropy.pallas_kernels.decode_matmul import gpu, tuning
from jentropy.pallas_kernels.decode_matmul.gpu_plan import MOST_ROWS, Plan, configs, plan
from jentropy.pallas_kernels.decode_matmul.transforms import Product
from jentropy.pallas_kernels.gpu_targets import current_target

from .matmul import ROWS, SHAPES, layers_of, seconds
from .measure import Result, environment

TUNED_ROWS = (8, 16, 32, 64, 128, 256)
LAYOUT = "gpu_window12"


def run() -> Iterator[Result]:
    """Times every configuration of every product, and writes the best.

    Raises:
      UnsupportedError: this process has no GPU with kernels.
    """
    device = jax.devices()[0]
    if default_backend() != "gpu":
        raise UnsupportedError(
            "tuning", expected="a Hopper GPU whose kernels work", found=device.device_kind
        )
    target, products, crossovers = current_target(), [], []
    for layer, (n, k) in SHAPES.items():
        weights = [jentropy.to_resident(w) for w in layers_of(n, k)]
        list_words = weights[0].arrays["escapes"].shape[-1]
        for m in TUNED_ROWS:
            times = {}
            for config in configs(m=m, k=k, n=n, list_words=list_words, target=target):
                own = plan(m=m, k=k, n=n, list_words=list_words, target=target, config=config)
                times[config] = seconds(_by(own), m, weights)
            best = min(times, key=times.__getitem__)
            products.append(
                {
                    **{"m": m, "k": k, "n": n, "tile_k": best.tile_k},
                    **{"stages": best.stages, "rounds": best.rounds},
                    "microseconds": round(1e6 * times[best], 2),
                }
            )
            figures = {"microseconds": 1e6 * times[best], "worst": max(times.values()) * 1e6}
            yield Result(name=f"{layer} M={m} {best}", figures=figures)
        crossovers.append(_crossover(weights, n, k, list_words))
        document = {
            **environment(),
            "device_kind": device.device_kind,
            "layouts": {LAYOUT: {"fused_rows": min(crossovers), "products": products}},
        }
        tuning.save(tuning.path_of(device.device_kind), document)


def _by(plan: Plan) -> Any:
    """A product that runs as planned."""
    product = Product(
        kernel=gpu.product,
        transpose_w=True,
        x_dtype=jnp.dtype(jnp.bfloat16),
        out_dtype=jnp.dtype(jnp.bfloat16),
        full_precision=False,
        interpret=False,
    )
    return partial(gpu.product, product=product, plan=plan)


def _crossover(weights: list[Any], n: int, k: int, list_words: int) -> int:
    """The most rows of x for which the fused kernel is the faster, of those that are timed."""
    target, last = current_target(), MOST_ROWS
    for m in (m for m in ROWS if m > MOST_ROWS):
        made = plan(m=m, k=k, n=n, list_words=list_words, target=target)
        fused, dense = (
            seconds(_by(dataclasses.replace(made, fused=choice)), m, weights)
            for choice in (True, False)
        )
        if fused > dense:
            break
        last = m
    return last
