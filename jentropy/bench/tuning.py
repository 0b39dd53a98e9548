"""`bench --suite matmul --tune`: the fastest configuration of each product, measured on this GPU.

What is found is written beside the package, by device kind, where `hopper.tuning` reads it;
after each layer, so that an interrupted run leaves what it had. Every result is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy.errors import CheckError, UnsupportedError
from jentropy.pallas_kernels import ResidentTensor, default_backend, fused, targets
from jentropy.pallas_kernels.hopper import tuning
from jentropy.pallas_kernels.hopper.plan import MOST_ROWS, Config, HopperPlan, configs, make_plan
from jentropy.pallas_kernels.layout import Plan

from .matmul import SHAPES, alike, layers_of, normal, program, seconds
from .measure import Result, environment, queued_seconds

TUNED_ROWS = (8, 16, 32, 64, 128, 256)
CROSSOVERS = (512, 1024)  # rows of x that are also multiplied by way of a dense weight
TOLERANCE = 0.01  # of the largest product: results are bfloat16
LAYOUT = "gpu_window12"


def run() -> Iterator[Result]:
    """Times every configuration of every product, and writes the best of those that are right.

    Raises:
      UnsupportedError: this process has no GPU with kernels.
      CheckError: a product is wrong.
    """
    device = jax.devices()[0]
    if default_backend() != "gpu":
        raise UnsupportedError(
            "tuning", expected="a Hopper GPU whose kernels work", found=device.device_kind
        )
    products: list[dict[str, Any]] = []
    crossovers = []
    for layer, (n, k) in SHAPES.items():
        dense = layers_of(n, k)
        weights = alike(jentropy.to_resident(dense[0]), len(dense))
        for m in TUNED_ROWS:
            times = times_of(m, dense[0], weights)
            best = min(times, key=times.__getitem__)
            products.append(
                {
                    **{"m": m, "k": k, "n": n, **dataclasses.asdict(best)},
                    "microseconds": round(1e6 * times[best], 2),
                }
            )
            figures = {"microseconds": 1e6 * times[best], "worst": max(times.values()) * 1e6}
            yield Result(name=f"{layer} M={m} {best}", figures=figures)
        crossovers.append(_crossover(weights))
        document = {
            **environment(),
            "device_kind": device.device_kind,
            "layouts": {LAYOUT: {"fused_rows": min(crossovers), "products": products}},
        }
        tuning.save(tuning.path_of(device.device_kind), document)


def plans(m: int, weight: ResidentTensor) -> dict[Config, HopperPlan]:
    """Of every configuration that fits."""
    planned, target = fused.kernels_of(weight).plan(weight, m), targets.current_gpu()
    make = partial(make_plan, m=m, k=planned.k, n=planned.n, traits=planned.traits, target=target)
    fitting = configs(m=planned.m, k=planned.k, n=planned.n, traits=planned.traits, target=target)
    return {config: make(config=config) for config in fitting}


def by(plan: Plan, out_dtype: Any = jnp.bfloat16, interpret: Any = False) -> Any:
    """A product that runs as planned."""
    product = fused.Product(
        transpose_w=True,
        x_dtype=np.dtype(jnp.bfloat16),
        out_dtype=np.dtype(out_dtype),
        interpret=interpret,
    )
    return partial(fused.one_product, product=product, plan=plan)


def times_of(m: int, dense: jax.Array, weights: list[Any]) -> dict[Config, float]:
    """Seconds of a product by each configuration.

    Raises:
      CheckError: one of them gives wrong numbers.
    """
    planned = plans(m, weights[0])
    with ThreadPoolExecutor() as threads:
        programs = list(threads.map(lambda plan: program(by(plan), m, weights), planned.values()))
    right = jnp.dot(normal(0, (m, dense.shape[1])), dense.T, preferred_element_type=jnp.float32)
    times = {}
    for config, run in zip(planned, programs, strict=True):
        error = float(jnp.abs(run()[0].astype(jnp.float32) - right).max() / jnp.abs(right).max())
        if not error <= TOLERANCE:
            raise CheckError(f"{config}: a product of M={m} is off by {error:.1e} of the largest")
        times[config] = queued_seconds(run) / len(weights)
    return times


def _crossover(weights: list[Any]) -> int:
    """The most rows of x for which the fused kernel is the faster, of those that are timed."""
    last = MOST_ROWS
    for m in CROSSOVERS:
        plan = fused.kernels_of(weights[0]).plan(weights[0], m)
        compressed, dense = (
            seconds(by(dataclasses.replace(plan, fused=choice)), m, weights)
            for choice in (True, False)
        )
        if compressed > dense:
            break
        last = m
    return last
