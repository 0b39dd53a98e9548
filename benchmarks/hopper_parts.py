"""The parts of `hopper.py`, each of which runs in a process of its own.

To add a kernel: its cases in `right` and `times`; to add a part: a function here, and the seconds
that it may take in `hopper.PARTS`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jentropy
from jentropy import bench, formats, jax_internals
from jentropy.bench import matmul, measure, tuning
from jentropy.bench.measure import median_seconds, queued_seconds
from jentropy.pallas_kernels import ResidentTensor, backends, reference, targets, to_resident
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.hopper.plan import Config, make_plan
from jentropy.pallas_kernels.hopper.tuning import path_of
from jentropy.pallas_kernels.variants import VARIANTS, abstract_weight, weight_of

START = float(os.environ.get("HOPPER_START", time.time()))
DRY = "HOPPER_DRY" in os.environ
OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
Finding = tuple[str, dict[str, Any]]
POISON = 1 if DRY else 16  # arrays of 256 MiB that hold NaN before what is checked is computed
TIMED_ROWS = (16,) if DRY else (16, 1, 64, 256)
SMALL = 128, 256  # N and K of every layer in a dry run
LAYERS = (  # in order of what they tell
    "Llama-3-8B gate+up",
    "Llama-3-8B o",
    "Llama-3-8B down",
    "Llama-3-8B q+k+v",
    "Llama-3-70B gate+up",
    "Qwen3-32B gate+up",
    "Llama-3-70B o",
    "Llama-3-70B down",
    "Qwen3-32B down",
    "Qwen3-32B o",
)
TIMED_FORMATS = (
    *("FP8 row", "MXFP4", "INT4 g128", "NVFP4", "MXFP8", "FP8 128x128", "INT4 g128 zeros"),
    *("INT8 row", "INT4 g32", "INT4 row"),
)
FORMATS_CHECKED = TIMED_FORMATS[:1] if DRY else TIMED_FORMATS
SEVEN = LAYERS[:5] + LAYERS[6:8]
# The geometric mean over these of how much faster products are than dense ones.
GOALS = {"BF16": 1.20, "FP8 row": 1.65, "MXFP4": 2.7, "NVFP4": 2.5, "INT4 g128": 2.8}
# N, K, experts and how many of them a token has, and the format beside BF16: gpt-oss-120b and
# DeepSeek-V3.
EXPERTS = (
    *((5760, 2880, 128, 4, "MXFP4"), (2880, 2880, 128, 4, "MXFP4")),
    *((2048, 7168, 256, 8, "FP8 128x128"), (7168, 2048, 256, 8, "FP8 128x128")),
)
EXPERT_TOKENS = (1, 16, 64)
if DRY:
    EXPERTS, EXPERT_TOKENS = ((*SMALL, 3, 2, "MXFP4"),), (4,)
GROUPS_CHECKED = 24
compressed_product = partial(jentropy.matmul, transpose_w=True, interpret=DRY)
grouped_product = partial(jentropy.grouped_matmul, transpose_w=True, interpret=DRY)
planned_product = tuning.by
timed_product, timed_groups, dense_of = compressed_product, grouped_product, jentropy.decode


def environment() -> Iterator[Finding]:
    """The machine, the versions, and whether the kernels work at all."""
    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    for command in (f"nvidia-smi --query-gpu={query} --format=csv,noheader", "ptxas --version"):
        if shutil.which(command.split()[0]):
            run = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            yield command.split()[0], {"text": (run.stdout + run.stderr).strip()[-200:]}
    yield "environment", bench.environment()
    yield "device", {"capability": str(getattr(jax.devices()[0], "compute_capability", None))}
    if not DRY:
        began = time.time()
        yield "trouble", {"text": backends.trouble("gpu") or "none", "seconds": time.time() - began}


def right() -> Iterator[Finding]:
    """Products against plain JAX over memory that held NaN, smallest first: where one is wrong."""
    yield "identity", _identity()
    cut, rounds = Config(tile_k=128, stages=2), Config(tile_k=256, stages=2, rounds=1)
    yield _product(8, _packed(_gaussian(256, 512, 60)))
    yield _product(5, _packed(_gaussian(200, 300, 60)), config=cut, times=20)
    yield _product(16, _packed(_gaussian(256, 512, 60)), config=rounds)
    yield _product(16, _packed(np.stack([_gaussian(128, 256, 60)] * 3))[2])
    yield _product(3, _packed(_gaussian(128, 256, 60)), precision="highest")
    dense = _gaussian(256, 256, 0)
    dense.view(np.uint16)[[7, 70, 150], [9, 99, 200]] = 0x7F80, 0xFF80, 0x7FC1
    tall = Config(tile_k=128, stages=3, height=2)
    yield _product(8, _packed(_gaussian(512, 384, 60)), config=tall)
    y = compressed_product(jnp.ones((4, 256), jnp.bfloat16), _packed(dense))
    columns = sorted({int(i) for i in np.argwhere(~np.isfinite(np.asarray(y, np.float32)))[:, 1]})
    yield "nan and inf", {"columns": columns, "right": columns == [7, 70, 150]}
    checked = (
        (1, 4096, 4096, 60, 20),
        (16, 4096, 4096, 60, 20),
        (16, 17000, 4096, 60, 5),
        (64, 6144, 4096, 60, 5),
        (200, 1000, 1100, 60, 1),
        (300, 512, 1024, 60, 1),
        (600, 512, 1024, 60, 1),
        (16, 4096, 4096, 15000, 1),
    )
    for m, n, k, escapes, times in ((1, *SMALL, 9, 2),) if DRY else checked:
        yield _product(m, _packed(_gaussian(n, k, escapes)), times=times)
    large = (
        (16, 51200, 5120),
        (1, 51200, 5120),
        (16, 28672, 4096),
        (16, 57344, 8192),
        (64, 8192, 28672),
        (256, 10240, 8192),
    )
    for m, n, k in ((16, *SMALL),) if DRY else large:
        # An escape of random words would not have a slot of 0.
        yield _product(m, random_weight(n, k, 0.0))
    n, k, layers = (*SMALL, 3) if DRY else (4096, 14336, 60)
    yield _product(8, _stacked(random_weight(n, k, 0.0), layers))


def decoding() -> Iterator[Finding]:
    """Dense weights bit for bit, every code; and how fast they come."""
    codes = np.arange(65536, dtype=np.uint16)
    for n, k in ((512, 2048),) if DRY else ((512, 2048), (4096, 4096)):
        dense = _gaussian(n, k, 0)
        bits = dense.view(np.uint16).reshape(-1)
        bits[np.random.default_rng(1).permutation(bits.size)[: codes.size]] = codes
        weight = _packed(dense)
        for dtype in (jnp.bfloat16,) if DRY else (jnp.bfloat16, jnp.float32):
            decoded = np.asarray(jentropy.decode(weight, dtype, interpret=DRY))
            expected = dense if dtype == jnp.bfloat16 else np.asarray(jnp.asarray(dense, dtype))
            unsigned = np.dtype(f"u{decoded.itemsize}")
            wrong = int((decoded.view(unsigned) != expected.view(unsigned)).sum())
            yield f"decode {n} x {k} {jnp.dtype(dtype)}", {"wrong": wrong}
    for n, k in (SMALL,) if DRY else ((4096, 4096), (28672, 4096), (57344, 8192)):
        weight = random_weight(n, k)
        seconds = queued_seconds(partial(jax.jit(dense_of), weight))
        speed = (weight.nbytes + 2 * n * k) / seconds / 1e9
        yield (
            f"decode N={n} K={k}",
            {"microseconds": 1e6 * seconds, "gigabytes_per_second": speed},
        )


def formats_right() -> Iterator[Finding]:
    """Products and dense weights of every format that has kernels."""
    for name, variant in VARIANTS.items():
        if name == "BF16" or not backends.has_kernels("gpu", variant.number_format):
            continue
        if DRY and name not in FORMATS_CHECKED:
            continue
        sizes = ((5, 70, 140),) if DRY else ((5, 200, 300), (16, 1000, 2100), (64, 520, 1024))
        for m, n, k in sizes[: 1 if name not in TIMED_FORMATS else None]:
            weight = _quantized(name, n, k)
            what, figures = _product(m, weight)
            yield f"{name}: {what}", figures
        wrong = {}
        for dtype in (jnp.float32,) if DRY else (jnp.bfloat16, jnp.float32):
            made, expected = (
                np.asarray(a)
                for a in (
                    jentropy.decode(weight, dtype, interpret=DRY),
                    reference.decode(weight, dtype),
                )
            )
            unsigned = np.dtype(f"u{made.itemsize}")
            wrong[str(jnp.dtype(dtype))] = int(
                (made.view(unsigned) != expected.view(unsigned)).sum()
            )
        yield f"{name}: decode", wrong


def formats_times() -> Iterator[Finding]:
    """Products of formats beside dense BF16 ones, and decodes, by the wall clock."""
    for m, layer in itertools.product(TIMED_ROWS, LAYERS[:1] if DRY else LAYERS[:3]):
        n, k = matmul.SHAPES[layer]
        dense = matmul.layers_of(n, k)
        theirs = matmul.seconds(matmul.dense_product, m, dense)
        del dense
        for name in FORMATS_CHECKED:
            weight = _random(name, n, k)
            ours = matmul.seconds(timed_product, m, matmul.alike(weight, matmul.layer_count(n, k)))
            speed = {"gigabytes_per_second": weight.nbytes / ours / 1e9}
            yield f"{name} {layer} M={m} N={n} K={k}", matmul.times(ours, theirs) | speed
            if m == TIMED_ROWS[-1] and layer == LAYERS[0]:
                seconds = queued_seconds(partial(jax.jit(dense_of), weight))
                speed = (weight.nbytes + 2 * n * k) / seconds / 1e9
                yield (
                    f"{name} decode N={n} K={k}",
                    {"microseconds": 1e6 * seconds, "gigabytes_per_second": speed},
                )


def goals() -> Iterator[Finding]:
    """What came of the times that this run has found, beside what was aimed at, M = 16."""
    found_so_far = OUT / "results.jsonl"
    text = found_so_far.read_text() if found_so_far.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    speedups = {line["what"]: line["speedup"] for line in lines if "speedup" in line}
    for name, goal in GOALS.items():
        label = "" if name == "BF16" else f"{name} "
        found = [
            speedups[f"{label}{layer} M=16 N={n} K={k}"]
            for layer, (n, k) in matmul.SHAPES.items()
            if layer in SEVEN and f"{label}{layer} M=16 N={n} K={k}" in speedups
        ]
        if found:
            mean = float(np.exp(np.mean(np.log(found))))
            yield name, {"shapes": len(found), "mean": mean, "goal": goal, "least": min(found)}


def groups_right() -> Iterator[Finding]:
    """Products of rows in groups, some of them empty, in every format, against plain JAX."""
    sizes = np.array([3, 0, 17, 1, 0, 8])
    for name in ("BF16", *FORMATS_CHECKED):
        for n, k in ((136, 260),) if DRY else ((136, 260), (1000, 2880)):
            values = np.stack([np.roll(_gaussian(n, k, 0), i, 0) for i in range(sizes.size)])
            weight = weight_of(VARIANTS[name].number_format, jnp.asarray(values, jnp.bfloat16))
            yield f"{name} N={n} K={k}", _groups(to_resident(weight, "gpu"), sizes, sizes.sum() + 3)
    for n, k, experts, top, _ in EXPERTS:
        chosen = np.random.default_rng(n).integers(0, experts, EXPERT_TOKENS[-1] * top)
        sizes = np.bincount(chosen, minlength=experts)
        stack = _stack(random_weight(n, k, 0.0), experts)
        yield f"BF16 N={n} K={k} experts={experts}", _groups(stack, sizes, sizes.sum())


def _groups(weight: ResidentTensor, sizes: np.ndarray, rows: int) -> dict[str, Any]:
    """The largest error of a product, and what rows of no group have."""
    product = jax.jit(partial(grouped_product, out_dtype=jnp.float32))
    x = jax.random.normal(jax.random.key(rows), (rows, weight.shape[-1]), jnp.bfloat16)
    runs = [np.asarray(product(x, weight, jnp.asarray(sizes, jnp.int32))) for _ in range(3)]
    worst, end = 0.0, 0
    for expert, size in enumerate(map(int, sizes)):
        if size and expert < GROUPS_CHECKED:  # each takes a compile of a size, a dense matrix
            own = jnp.pad(x[end : end + size], ((0, -size % 32), (0, 0)))
            expected, scale = (np.asarray(a) for a in _expected(own, weight[expert]))
            error = np.abs(runs[0][end : end + size] - expected[:size]) / (scale[:size] + 1e-30)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
        end += size
    return {
        "worst": worst,
        "beyond": float(np.abs(runs[0][end:]).max(initial=0)),
        "differing_runs": sum(run.tobytes() != runs[0].tobytes() for run in runs),
    }


def groups_times() -> Iterator[Finding]:
    """The same of models' experts, beside dense ones, by the wall clock."""
    for (n, k, experts, top, stored), tokens in itertools.product(EXPERTS, EXPERT_TOKENS):
        rows = tokens * top
        chosen = np.random.default_rng(tokens).integers(0, experts, rows)
        sizes = jnp.asarray(np.bincount(chosen, minlength=experts), jnp.int32)
        x = jax.random.normal(jax.random.key(0), (rows, k), jnp.bfloat16)
        dense = jax.random.normal(jax.random.key(1), (experts, k, n), jnp.bfloat16)
        theirs = queued_seconds(partial(jax.jit(jax.lax.ragged_dot), x, dense, sizes))
        del dense
        for name in ("BF16", stored):
            one = random_weight(n, k, 0.0) if name == "BF16" else _random(name, n, k)
            stack = _stack(one, experts)
            ours = queued_seconds(partial(jax.jit(timed_groups), x, stack, sizes))
            read = int((sizes > 0).sum()) * stack.nbytes / experts
            speed = {"gigabytes_per_second": read / ours / 1e9}
            what = f"{name} tokens={tokens} experts={experts} N={n} K={k}"
            yield what, matmul.times(ours, theirs) | speed


def ceilings() -> Iterator[Finding]:
    """What memory gives, and what a kernel and a call cost."""
    array = jnp.arange(1 << (16 if DRY else 28), dtype=jnp.uint32)
    for name, run, bytes_ in (
        ("copy", jax.jit(lambda a: a + 1), 2 * array.nbytes),
        ("read", jax.jit(lambda a: a.max()), array.nbytes),
    ):
        yield name, {"gigabytes_per_second": bytes_ / queued_seconds(partial(run, array)) / 1e9}

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(64):
            x = jax.lax.optimization_barrier(x * 1.0001)
        return x

    small = jnp.ones((8, 128), jnp.float32)
    yield "a kernel", {"microseconds": 1e6 * queued_seconds(partial(jax.jit(chain), small)) / 64}
    once = median_seconds(partial(jax.jit(lambda x: x * 1.0001), small), 100)
    yield "a call that is awaited", {"microseconds": 1e6 * once}


def times() -> Iterator[Finding]:
    """Products beside the dense ones, by the wall clock."""
    for layer in LAYERS[:1] if DRY else LAYERS:
        n, k = matmul.SHAPES[layer]
        weight = random_weight(n, k)
        weights = matmul.alike(weight, matmul.layer_count(n, k))
        dense = matmul.layers_of(n, k)
        for m in TIMED_ROWS:
            ours = matmul.seconds(timed_product, m, weights)
            theirs = matmul.seconds(matmul.dense_product, m, dense)
            speeds = {
                "gigabytes_per_second": weight.nbytes / ours / 1e9,
                "dense_gigabytes_per_second": 2 * n * k / theirs / 1e9,
            }
            yield f"{layer} M={m} N={n} K={k}", matmul.times(ours, theirs) | speeds
        del weights, dense


def kernels() -> Iterator[Finding]:
    """What CUPTI says of the kernels of a product, without CUDA graphs, which hide them from it."""
    matmul.MOST_LAYERS = min(matmul.MOST_LAYERS, 8)
    for layer in LAYERS[:1] if DRY else LAYERS[:5]:
        n, k = matmul.SHAPES[layer]
        weights = matmul.alike(random_weight(n, k), matmul.layer_count(n, k))
        both = {
            "compressed": (timed_product, weights),
            "dense": (matmul.dense_product, matmul.layers_of(n, k)),
        }
        for m in TIMED_ROWS:
            for name, (product, layers) in both.items():
                microseconds: Counter[str] = Counter()
                run = matmul.program(product, m, layers)
                for kernel, milliseconds in kernel_times(run):
                    microseconds[kernel[:60]] += 1e3 * milliseconds / len(layers)
                by_kernel = {key: float(f"{t:.4g}") for key, t in microseconds.items()}
                yield (
                    f"{name} {layer} M={m} N={n} K={k}",
                    {"microseconds": microseconds.total(), "kernels": by_kernel},
                )


def sweep() -> Iterator[Finding]:
    """Every configuration of a few products, and what escapes cost."""
    cases = [(4096, 4096, 16), (28672, 4096, 16), (28672, 4096, 64), (28672, 4096, 256)]
    for n, k, m in [(*SMALL, 16)] if DRY else cases:
        for escapes in (1.3, 0.0, 4.0):
            weights = matmul.alike(random_weight(n, k, escapes), matmul.layer_count(n, k))
            plans = list(tuning.plans(m, weights[0]).values())
            for plan in plans if escapes == 1.3 else plans[:1]:
                seconds = matmul.seconds(tuning.by(plan), m, weights)
                yield (
                    f"N={n} K={k} M={m} escapes={escapes}",
                    {
                        "config": str(plan.config),
                        "parts": plan.parts,
                        "microseconds": 1e6 * seconds,
                    },
                )


def tune() -> Iterator[Finding]:
    """The best configurations, of which OUT gets the file that goes into `pallas_kernels/tuned`."""
    for result in tuning.run():
        yield result.name, dict(result.figures)
        path = path_of(jax.devices()[0].device_kind)
        if path.is_file():
            shutil.copy(path, OUT / path.name)


def torch() -> Iterator[Finding]:
    """cuBLAS by way of PyTorch's graphs: whether XLA's dense product is the best there is."""
    import torch

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


def random_weight(n: int, k: int, escapes: float = 1.3) -> ResidentTensor:
    """A packed weight of random words: any are valid. Lists hold so many entries on average."""
    n, k = (-(-size // 128) * 128 for size in (n, k))
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 1 << 29, (n // 64, k // 128, 16), np.uint32)
    lists &= np.uint32(0xFFFF3F80)  # codes of moderate size
    lists[..., 0] = np.minimum(rng.poisson(escapes, lists.shape[:2]), 15)
    return ResidentTensor(
        arrays={
            "words": jax.random.bits(jax.random.key(0), (n // 64, k // 64, 12, 128), jnp.uint32),
            "scale": jnp.full((n,), 2.0**106, jnp.bfloat16),
            "escapes": jnp.asarray(lists),
        },
        layout="gpu_window12",
        number_format=formats.FORMATS["BF16"],
        logical=(n, k),
    )


def _quantized(name: str, n: int, k: int) -> ResidentTensor:
    values = jnp.asarray(_gaussian(n, k, 0), jnp.float32)
    weight = to_resident(weight_of(VARIANTS[name].number_format, values), "gpu")
    assert getattr(weight, "layout", None) == "gpu_scaled", weight
    return weight


def _random(name: str, n: int, k: int) -> ResidentTensor:
    """A packed weight of random words: any are valid, but for NaN of floats of eight bits."""
    weight = to_resident(abstract_weight(VARIANTS[name].number_format, (n, k)), "gpu")

    def made(array: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        if array == "words":
            return jax.random.bits(jax.random.key(0), shape.shape, jnp.uint32)
        if shape.dtype == jnp.uint32:
            return jnp.full(shape.shape, 0x74747474, jnp.uint32)
        return jnp.full(shape.shape, 8 if shape.dtype == jnp.uint8 else 2.0**-6, shape.dtype)

    return replace(weight, arrays={key: made(key, array) for key, array in weight.arrays.items()})


def _stacked(weight: ResidentTensor, count: int) -> ResidentTensor:
    """The last of many weights that differ."""
    return _stack(weight, count)[count - 1]


def _stack(weight: ResidentTensor, count: int) -> ResidentTensor:
    """Many weights that differ."""
    arrays = {name: jnp.stack([a] * count) for name, a in weight.arrays.items()}
    arrays["words"] += jnp.arange(count, dtype=jnp.uint32)[:, None, None, None, None]
    return replace(weight, arrays=arrays)


def _gaussian(n: int, k: int, escapes: int) -> np.ndarray:
    """Weights, some of them far from the others."""
    rng = np.random.default_rng(n + k)
    dense = (rng.standard_normal((n, k)) * 0.02).astype(ml_dtypes.bfloat16)
    row, column = rng.integers(0, n, escapes), rng.integers(0, k, escapes)
    far = rng.standard_normal(escapes) * 2.0 ** rng.integers(-60, 40, escapes)
    dense[row, column] = far.astype(ml_dtypes.bfloat16)
    dense[min(3, n - 1)] = 0
    return dense


def _packed(dense: np.ndarray) -> ResidentTensor:
    weight = to_resident(jnp.asarray(dense), "gpu")
    assert getattr(weight, "layout", None) == "gpu_window12", weight
    return weight


def _identity() -> dict[str, Any]:
    """Every weight in its place, and if not, where it came from."""
    dense = _gaussian(128, 128, 0)
    eye = jnp.eye(128, dtype=jnp.bfloat16)
    y = np.asarray(compressed_product(eye, _packed(dense), out_dtype=jnp.float32)).T
    expected = dense.astype(np.float32)
    wrong = np.argwhere(y != expected)
    places = {float(v): at for at, v in np.ndenumerate(expected)}
    moved = [(tuple(map(int, at)), places.get(float(y[tuple(at)]))) for at in wrong[:12]]
    return {"wrong": len(wrong), "moved": str(moved)}


@jax.jit
def _expected(x: jax.Array, w: ResidentTensor) -> tuple[jax.Array, jax.Array]:
    """The product in plain JAX, and what its error is measured by: |x| |w|."""
    dense = reference.decode(w, jnp.float32).T
    highest = partial(jnp.dot, precision="highest")
    x = x.astype(jnp.float32)
    return highest(x, dense), highest(jnp.abs(x), jnp.abs(dense))


def _product(
    m: int,
    weight: ResidentTensor,
    *,
    config: Config | None = None,
    precision: Any = None,
    times: int = 1,
) -> Finding:
    """A product, several times, over memory that held NaN."""
    n, k = weight.shape
    x = jax.random.normal(jax.random.key(m), (m, k), jnp.float32 if precision else jnp.bfloat16)
    expected, scale = _expected(x, weight)
    poison = [jnp.full((1 << 26,), jnp.nan, jnp.float32) for _ in range(POISON)]
    jax.block_until_ready(poison)
    del poison
    product = partial(compressed_product, out_dtype=jnp.float32, precision=precision)
    if config is not None:
        traits, target = kernels_of(weight).plan(weight, m).traits, targets.current_gpu()
        plan = make_plan(m=m, k=k, n=n, traits=traits, target=target, config=config)
        product = planned_product(plan, jnp.float32, interpret=DRY)
    product = jax.jit(product)
    runs = [np.asarray(product(x, weight)) for _ in range(1 if DRY else times)]
    error = np.abs(runs[0] - np.asarray(expected)) / (np.asarray(scale) + 1e-30)
    return (
        f"product M={m} N={n} K={k}",
        {
            "options": f"{config} precision={precision}",
            "stack_bytes": int(weight.arrays["words"].nbytes),
            "worst": float(np.nanmax(error)),
            "at": str(tuple(map(int, np.unravel_index(np.nanargmax(error), error.shape)))),
            "nan": int(np.isnan(error).sum()),
            "differing_runs": sum(run.tobytes() != runs[0].tobytes() for run in runs),
        },
    )


def kernel_times(run: Any) -> list[tuple[str, float]]:
    """Names and milliseconds of kernels; in a dry run, which has none, of the whole call."""
    return [("all", 1e3 * median_seconds(run, 1))] if DRY else jax_internals.kernel_times(run)


def make_dry() -> None:
    """Few multiprocessors for the interpreter, small layers, plain JAX where times are taken."""
    global timed_product, timed_groups, dense_of
    few = replace(targets.GPUS["h200"], multiprocessors=2)
    targets.current_gpu = lambda: few
    dense_of = partial(reference.decode, dtype=jnp.bfloat16)
    timed_product = lambda x, w: matmul.dense_product(x, dense_of(w))  # noqa: E731
    timed_groups = lambda x, w, sizes: jentropy.grouped_matmul(  # noqa: E731
        x, dense_of(w), sizes, transpose_w=True
    )
    tuning.TUNED_ROWS, tuning.CROSSOVERS = (16,), (32,)
    tuning.default_backend = lambda: "gpu"
    tuning.by = lambda plan: timed_product
    jentropy.to_resident = partial(to_resident, backend="gpu")
    matmul.MOST_LAYERS, measure.REPEATS = 2, 1
    matmul.SHAPES.update(dict.fromkeys(matmul.SHAPES, SMALL))
    for layer in set(matmul.SHAPES) - set(LAYERS[:1]):
        del matmul.SHAPES[layer]


def say(part: str, what: str, figures: dict[str, Any]) -> None:
    """Writes a finding."""
    short = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
    seconds = round(time.time() - START, 1)
    line = json.dumps({"seconds": seconds, "part": part, "what": what, **short})
    with (OUT / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    told = " ".join(f"{k}={v}" for k, v in short.items())
    print(f"[{seconds:5.0f}] {part}: {what}: {told:.300}", flush=True)


def main(name: str) -> int:
    """Runs a part; returns its exit code."""
    if DRY:
        make_dry()
    try:
        for what, figures in globals()[name]():
            say(name, what, figures)
    except Exception as error:
        trace = traceback.format_exc()[-1500:]
        say(name, "FAILED", {"error": f"{type(error).__name__}: {error}"[:500], "at": trace})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2]))
