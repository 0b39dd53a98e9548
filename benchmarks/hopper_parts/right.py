"""Whether numbers are right: each part's smallest cases first, so that it shows where one is not.

Of a product `worst` is the largest error as a share of |x| |w|, which plain JAX adds in float32
too; `right` says whether that is what rounding of sums explains, all runs gave the same bits, and
memory that held NaN left none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import jentropy
from jentropy.bench import tuning
from jentropy.pallas_kernels import ResidentTensor, reference, targets, to_resident
from jentropy.pallas_kernels.fused import kernels_of
from jentropy.pallas_kernels.hopper.plan import Config, make_plan
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from . import Case, Finding
from .weights import (
    DRY,
    EXPERT_TOKENS,
    EXPERTS,
    GOALS,
    OTHERS,
    gaussian,
    packed,
    quantized,
    random_weight,
    stacked,
)

ROUNDING = 2.0**-15  # of |x| |w|: 1.2e-5 was seen where nothing was wrong
POISON = 1 if DRY else 16  # arrays of 256 MiB that hold NaN before what is checked is computed
GROUPS_CHECKED = 24
FORMATS_CHECKED = GOALS[2:3] if DRY else GOALS[1:]
compressed_product = partial(jentropy.matmul, transpose_w=True, interpret=DRY)
grouped_product = partial(jentropy.grouped_matmul, transpose_w=True, interpret=DRY)
planned_product = tuning.by


def right() -> Iterator[Case]:
    """Products with BF16 against plain JAX over memory that held NaN."""

    def of(m: int, n: int, k: int, escapes: int = 60, **options: Any) -> Case:
        run = lambda: [_product(m, packed(gaussian(n, k, escapes)), **options)]  # noqa: E731
        return f"M={m} N={n} K={k}", run

    yield "identity", _identity
    yield of(8, 256, 512)
    if not DRY:
        yield of(5, 200, 300, config=Config(tile_k=128, stages=2), times=20)
        yield of(16, 256, 512, config=Config(tile_k=256, stages=2, rounds=1))
    tall = Config(tile_k=128, stages=3, height=2)
    yield of(8, *((256, 384) if DRY else (512, 384)), config=tall)
    yield "a stack's", lambda: [_product(16, packed(np.stack([gaussian(128, 256, 60)] * 3))[2])]
    yield of(3, 128, 256, precision="highest")
    yield "nan and inf", _nan_and_inf
    if DRY:
        return
    yield of(1, 4096, 4096, times=20)
    yield of(16, 4096, 4096, times=20)
    yield of(64, 6144, 4096, times=5)
    yield of(200, 1000, 1100)
    yield of(300, 512, 1024)
    yield of(600, 512, 1024)
    yield of(16, 4096, 4096, escapes=15000)
    large = ((16, 28672, 4096), (16, 51200, 5120), (64, 8192, 28672), (16, 57344, 8192))
    for m, n, k in large:
        # An escape of random words would not have a slot of 0.
        run = lambda m=m, n=n, k=k: [_product(m, random_weight(n, k, 0.0))]  # noqa: E731
        yield f"M={m} N={n} K={k}", run
    yield "a stack of 5 GB", lambda: [_product(8, stacked(random_weight(4096, 14336, 0.0), 60)[59])]


def formats_right() -> Iterator[Case]:
    """Products and dense weights of the formats that have aims."""
    for name in FORMATS_CHECKED:
        yield name, partial(_format, name, 1 if DRY else 3)


def other_formats_right() -> Iterator[Case]:
    """The same of the other formats that have kernels."""
    for name in OTHERS[:1] if DRY else OTHERS:
        yield name, partial(_format, name, 1 if DRY else 2)


def groups_right() -> Iterator[Case]:
    """Products of rows in groups, some of them empty, against plain JAX."""
    sizes = np.array([3, 0, 17, 1, 0, 8])
    for name in ("BF16", *FORMATS_CHECKED):
        for n, k in ((136, 260),) if DRY else ((136, 260), (1000, 2880)):
            yield f"{name} N={n} K={k}", partial(_small_groups, name, n, k, sizes)
    for n, k, experts, top, _ in EXPERTS:
        yield f"experts N={n} K={k}", partial(_experts, n, k, experts, top)


def decoding() -> Iterator[Case]:
    """Dense weights bit for bit, every code of BF16."""
    for n, k in ((512, 2048),) if DRY else ((512, 2048), (4096, 4096)):
        yield f"N={n} K={k}", partial(_every_code, n, k)


def _every_code(n: int, k: int) -> Iterator[Finding]:
    codes, dense = np.arange(65536, dtype=np.uint16), gaussian(n, k, 0)
    bits = dense.view(np.uint16).reshape(-1)
    bits[np.random.default_rng(1).permutation(bits.size)[: codes.size]] = codes
    weight = packed(dense)
    for dtype in (jnp.bfloat16,) if DRY else (jnp.bfloat16, jnp.float32):
        decoded = jentropy.decode(weight, dtype, interpret=DRY)
        expected = dense if dtype == jnp.bfloat16 else jnp.asarray(dense, dtype)
        yield f"decode {n} x {k} {jnp.dtype(dtype)}", _differing(decoded, expected)


def _differing(made: Any, expected: Any) -> dict[str, Any]:
    """How many numbers differ in a bit."""
    made, expected = np.asarray(made), np.asarray(expected)
    unsigned = np.dtype(f"u{made.itemsize}")
    wrong = int((made.view(unsigned) != expected.view(unsigned)).sum())
    return {"wrong": wrong, "right": wrong == 0}


def _format(name: str, count: int) -> Iterator[Finding]:
    sizes = ((5, 70, 140),) if DRY else ((5, 200, 300), (16, 1000, 2100), (64, 520, 1024))
    for m, n, k in sizes[:count]:
        weight = quantized(name, n, k)
        what, figures = _product(m, weight)
        yield f"{name}: {what}", figures
    for dtype in (jnp.float32,) if DRY else (jnp.bfloat16, jnp.float32):
        decoded = jentropy.decode(weight, dtype, interpret=DRY)
        figures = _differing(decoded, reference.decode(weight, dtype))
        yield f"{name}: decode to {jnp.dtype(dtype)}", figures


def _small_groups(name: str, n: int, k: int, sizes: np.ndarray) -> Iterator[Finding]:
    values = np.stack([np.roll(gaussian(n, k, 0), i, 0) for i in range(sizes.size)])
    weight = weight_of(VARIANTS[name].number_format, jnp.asarray(values, jnp.bfloat16))
    yield f"{name} N={n} K={k}", _groups(to_resident(weight, "gpu"), sizes, sizes.sum() + 3)


def _experts(n: int, k: int, experts: int, top: int) -> Iterator[Finding]:
    chosen = np.random.default_rng(n).integers(0, experts, EXPERT_TOKENS[-1] * top)
    sizes = np.bincount(chosen, minlength=experts)
    stack = stacked(random_weight(n, k, 0.0), experts)
    yield f"BF16 N={n} K={k} experts={experts}", _groups(stack, sizes, sizes.sum())


def _groups(weight: ResidentTensor, sizes: np.ndarray, rows: int) -> dict[str, Any]:
    """The largest error of a product, and what rows of no group have."""
    product = jax.jit(partial(grouped_product, out_dtype=jnp.float32))
    x = jax.random.normal(jax.random.key(rows), (rows, weight.shape[-1]), jnp.bfloat16)
    repeats = 1 if DRY else 3
    runs = [np.asarray(product(x, weight, jnp.asarray(sizes, jnp.int32))) for _ in range(repeats)]
    worst, end = 0.0, 0
    for expert, size in enumerate(map(int, sizes)):
        if size and expert < GROUPS_CHECKED:  # each takes a compile of a size, a dense matrix
            own = jnp.pad(x[end : end + size], ((0, -size % 32), (0, 0)))
            expected, scale = (np.asarray(a) for a in _expected(own, weight[expert]))
            error = np.abs(runs[0][end : end + size] - expected[:size]) / (scale[:size] + 1e-30)
            worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
        end += size
    beyond = float(np.abs(runs[0][end:]).max(initial=0))
    differing = sum(run.tobytes() != runs[0].tobytes() for run in runs)
    return {
        "worst": worst,
        "beyond": beyond,
        "differing_runs": differing,
        "right": worst < ROUNDING and beyond == 0 and not differing,
    }


def _identity() -> Iterator[Finding]:
    """Every weight in its place, and if not, where it came from."""
    dense = gaussian(128, 128, 0)
    eye = jnp.eye(128, dtype=jnp.bfloat16)
    y = np.asarray(compressed_product(eye, packed(dense), out_dtype=jnp.float32)).T
    expected = dense.astype(np.float32)
    wrong = np.argwhere(y != expected)
    places = {float(v): at for at, v in np.ndenumerate(expected)}
    moved = [(tuple(map(int, at)), places.get(float(y[tuple(at)]))) for at in wrong[:12]]
    yield "identity", {"wrong": len(wrong), "moved": str(moved), "right": not len(wrong)}


def _nan_and_inf() -> Iterator[Finding]:
    """They stay in their columns."""
    dense = gaussian(256, 256, 0)
    dense.view(np.uint16)[[7, 70, 150], [9, 99, 200]] = 0x7F80, 0xFF80, 0x7FC1
    y = compressed_product(jnp.ones((4, 256), jnp.bfloat16), packed(dense))
    columns = sorted({int(i) for i in np.argwhere(~np.isfinite(np.asarray(y, np.float32)))[:, 1]})
    yield "nan and inf", {"columns": columns, "right": columns == [7, 70, 150]}


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
    dtype: DTypeLike = jnp.float32 if precision else jnp.bfloat16
    x = jax.random.normal(jax.random.key(m), (m, k), dtype)
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
    nan, error = int(np.isnan(error).sum()), np.nan_to_num(error)
    worst, at = float(error.max()), np.unravel_index(error.argmax(), error.shape)
    differing = sum(run.tobytes() != runs[0].tobytes() for run in runs)
    return (
        f"product M={m} N={n} K={k}",
        {
            "options": f"{config} precision={precision}",
            "stack_bytes": int(weight.arrays["words"].nbytes),
            "worst": worst,
            "at": str(tuple(map(int, at))),
            "nan": nan,
            "differing_runs": differing,
            "right": worst < ROUNDING and nan == 0 and not differing,
        },
    )
