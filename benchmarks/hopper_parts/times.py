"""What products take, beside dense ones of the same run.

A product is timed as one of many layers, so large together that the cache holds none of them, see
`bench.matmul`. Kernels of a case are compiled beside each other before any is timed.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jentropy
from jentropy import jax_internals
from jentropy.bench import matmul, tuning
from jentropy.bench.measure import median_seconds, queued_seconds
from jentropy.pallas_kernels.hopper.tuning import path_of

from . import Case, Finding
from .weights import (
    DRY,
    EXPERT_TOKENS,
    EXPERTS,
    GOALS,
    LAYERS,
    OTHERS,
    SMALL,
    random_of,
    random_weight,
    stacked,
)

PROFILED_LAYERS = 8  # of a program: CUPTI names each kernel of each
timed_product = partial(jentropy.matmul, transpose_w=True)
timed_groups = partial(jentropy.grouped_matmul, transpose_w=True)
dense_of = jentropy.decode


def ceilings() -> Iterator[Case]:
    """What memory gives, and what a kernel and a call cost."""
    yield "memory", _memory
    yield "a kernel and a call", _launches


def _memory() -> Iterator[Finding]:
    array = jnp.arange(1 << (16 if DRY else 28), dtype=jnp.uint32)
    for name, run, bytes_ in (
        ("copy", jax.jit(lambda a: a + 1), 2 * array.nbytes),
        ("read", jax.jit(lambda a: a.max()), array.nbytes),
    ):
        yield name, {"gigabytes_per_second": bytes_ / queued_seconds(partial(run, array)) / 1e9}


def _launches() -> Iterator[Finding]:
    def chain(x: jax.Array) -> jax.Array:
        for _ in range(64):
            x = jax.lax.optimization_barrier(x * 1.0001)
        return x

    small = jnp.ones((8, 128), jnp.float32)
    yield "a kernel", {"microseconds": 1e6 * queued_seconds(partial(jax.jit(chain), small)) / 64}
    once = median_seconds(partial(jax.jit(lambda x: x * 1.0001), small), 100)
    yield "a call that is awaited", {"microseconds": 1e6 * once}


def times() -> Iterator[Case]:
    """Of 16 rows of x, for which the aims are."""
    return _products((16,), GOALS)


def few_rows() -> Iterator[Case]:
    """Of fewer."""
    return _products((1, 4), GOALS)


def many_rows() -> Iterator[Case]:
    """Of more, up to those for which the weight is decoded."""
    return _products((64, 4096, 256), GOALS)


def other_formats() -> Iterator[Case]:
    """Of formats without aims; and what it takes to decode each format."""
    yield from _products((16,), OTHERS, dict(list(LAYERS.items())[:2]))
    (n, k), *_ = LAYERS.values()
    for name in (*GOALS, *OTHERS):
        yield f"decode {name}", partial(_decode, name, n, k)


def _products(
    rows: Sequence[int], names: Sequence[str], layers: dict[str, tuple[int, int]] = LAYERS
) -> Iterator[Case]:
    for m, (layer, (n, k)) in itertools.product((16,) if DRY else rows, layers.items()):
        yield f"{layer} M={m}", partial(_layer, names[:2] if DRY else names, layer, m, n, k)


def _layer(names: Sequence[str], layer: str, m: int, n: int, k: int) -> Iterator[Finding]:
    """Products of one size: the dense one first."""
    count = matmul.layer_count(n, k)
    before = _bytes_in_use()
    theirs = matmul.seconds(matmul.dense_product, m, matmul.layers_of(n, k))
    dense_speed = {"dense_gigabytes_per_second": 2 * n * k / theirs / 1e9}
    weights = {name: matmul.alike(random_of(name, n, k), count) for name in names}
    with ThreadPoolExecutor() as threads:
        programs = {
            name: threads.submit(matmul.program, timed_product, m, layers)
            for name, layers in weights.items()
        }
    for name, made in programs.items():
        label = {"format": name, "layer": layer, "m": m, "n": n, "k": k}
        what = f"{name} {layer} M={m} N={n} K={k}"
        if (error := made.exception()) is not None:  # the others are timed all the same
            yield f"FAILED {what}", label | {"error": f"{type(error).__name__}: {error}"[:500]}
            continue
        ours = queued_seconds(made.result()) / count
        speed = {"gigabytes_per_second": weights[name][0].nbytes / ours / 1e9}
        yield what, label | matmul.times(ours, theirs) | speed | dense_speed
    del made, programs
    held = sum(w.nbytes for layers in weights.values() for w in layers)
    # A dense copy of any weight would be there still, next to the weights.
    left = {} if before is None else {"bytes": _bytes_in_use() - before - held}
    yield f"left behind {layer} M={m}", {"dense_bytes": 2 * n * k, **left}


def _bytes_in_use() -> Any:
    """Of the device's memory; None where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_in_use")


def _decode(name: str, n: int, k: int) -> Iterator[Finding]:
    weight = random_of(name, n, k)
    seconds = queued_seconds(partial(jax.jit(dense_of), weight))
    speed = (weight.nbytes + 2 * n * k) / seconds / 1e9
    figures = {"microseconds": 1e6 * seconds, "gigabytes_per_second": speed}
    yield f"{name} decode N={n} K={k}", figures


def groups_times() -> Iterator[Case]:
    """Products of tokens with models' experts, beside dense ones."""
    for of, tokens in itertools.product(EXPERTS, EXPERT_TOKENS):
        yield f"{of} tokens={tokens}", partial(_experts, *of, tokens)


def _experts(n: int, k: int, experts: int, top: int, stored: str, tokens: int) -> Iterator[Finding]:
    rows = tokens * top
    chosen = np.random.default_rng(tokens).integers(0, experts, rows)
    sizes = jnp.asarray(np.bincount(chosen, minlength=experts), jnp.int32)
    x = jax.random.normal(jax.random.key(0), (rows, k), jnp.bfloat16)
    dense = jax.random.normal(jax.random.key(1), (experts, k, n), jnp.bfloat16)
    theirs = queued_seconds(partial(jax.jit(jax.lax.ragged_dot), x, dense, sizes))
    del dense
    for name in ("BF16", stored):
        one = random_weight(n, k, 0.0) if name == "BF16" else random_of(name, n, k)
        stack = stacked(one, experts)
        ours = queued_seconds(partial(jax.jit(timed_groups), x, stack, sizes))
        read = int((sizes > 0).sum()) * stack.nbytes / experts
        speed = {"gigabytes_per_second": read / ours / 1e9}
        what = f"{name} tokens={tokens} experts={experts} N={n} K={k}"
        yield what, matmul.times(ours, theirs) | speed


def kernels() -> Iterator[Case]:
    """What CUPTI says of the kernels of a product, without CUDA graphs, which hide them from it."""
    for m, (layer, (n, k)) in itertools.product((16,) if DRY else (16, 64), LAYERS.items()):
        for name in ("BF16", "MXFP4", "dense"):
            yield f"{name} {layer} M={m}", partial(_kernels, name, layer, m, n, k)


def _kernels(name: str, layer: str, m: int, n: int, k: int) -> Iterator[Finding]:
    count = min(PROFILED_LAYERS, matmul.layer_count(n, k))
    product: Callable[..., Any] = timed_product
    if name == "dense":
        product, layers = matmul.dense_product, matmul.layers_of(n, k)[:count]
    else:
        layers = matmul.alike(random_of(name, n, k), count)
    microseconds: Counter[str] = Counter()
    for kernel, milliseconds in _kernel_times(matmul.program(product, m, layers)):
        microseconds[kernel[:60]] += 1e3 * milliseconds / count
    by_kernel = {key: float(f"{t:.4g}") for key, t in microseconds.items()}
    figures = {"microseconds": microseconds.total(), "kernels": by_kernel}
    yield f"{name} {layer} M={m} N={n} K={k}", figures


def _kernel_times(run: Any) -> list[tuple[str, float]]:
    """Names and milliseconds of kernels; in a dry run, which has none, of the whole call."""
    return [("all", 1e3 * median_seconds(run, 1))] if DRY else jax_internals.kernel_times(run)


def sweep() -> Iterator[Case]:
    """Every configuration of a few products, and what escapes cost."""
    cases = (
        *((4096, 4096, 16, "BF16"), (28672, 4096, 16, "BF16"), (28672, 4096, 64, "BF16")),
        *((28672, 4096, 16, "MXFP4"), (28672, 4096, 64, "MXFP4"), (28672, 4096, 256, "BF16")),
    )
    for n, k, m, name in [(*SMALL, 16, "BF16")] if DRY else cases:
        yield f"{name} N={n} K={k} M={m}", partial(_configurations, n, k, m, name)


def _configurations(n: int, k: int, m: int, name: str) -> Iterator[Finding]:
    for escapes in (1.3, 0.0, 4.0) if name == "BF16" else (0.0,):
        weight = random_weight(n, k, escapes) if name == "BF16" else random_of(name, n, k)
        weights = matmul.alike(weight, matmul.layer_count(n, k))
        plans = list(tuning.plans(m, weight).values())
        for plan in plans if escapes == 1.3 or name != "BF16" else plans[:1]:
            figures = {
                "config": str(plan.config),
                "parts": plan.parts,
                "microseconds": 1e6 * matmul.seconds(tuning.by(plan), m, weights),
            }
            yield f"{name} N={n} K={k} M={m} escapes={escapes}", figures


def tune(out: Path) -> Iterator[Case]:
    """The best configurations, of which `out` gets the file that goes to `pallas_kernels/tuned`."""
    yield "tune", partial(_tune, out)


def _tune(out: Path) -> Iterator[Finding]:
    path = path_of(jax.devices()[0].device_kind)
    try:
        for result in tuning.run():
            yield result.name, dict(result.figures)
    finally:
        if path.is_file():
            shutil.copy(path, out / path.name)


def torch() -> Iterator[Case]:
    """cuBLAS by way of PyTorch's graphs: whether XLA's dense product is the best there is."""
    yield "cuBLAS", _torch


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield "left out", {"text": str(error)}
        return
    if not torch.cuda.is_available():
        yield "left out", {"text": "PyTorch sees no GPU"}
        return
    for n, k in ((28672, 4096), (4096, 4096)):
        count = 3 if n > k else 16
        weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        for m in (1, 16, 64, 256):
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            torch.nn.functional.linear(x, weights[0])
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = [torch.nn.functional.linear(x, w) for w in weights]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            for _ in range(10):
                graph.replay()
            end.record()
            torch.cuda.synchronize()
            del kept
            yield f"N={n} K={k} M={m}", {"microseconds": begin.elapsed_time(end) * 100 / count}
