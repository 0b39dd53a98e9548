"""Hopper kernels as they are compiled, run instruction by instruction on a CPU; no GPU is needed.

By default one product and one decode, and a few planted faults; JENTROPY_AOT=all runs every kind of
plan and plants every fault. See `hopper_emulator`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jentropy.pallas_kernels import reference, targets, to_resident
from jentropy.pallas_kernels.fused import Product, kernels_of
from jentropy.pallas_kernels.hopper.plan import Config, make_plan
from jentropy.pallas_kernels.targets import GPUS
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from .compilers import EVERYTHING, needs, outputs
from .hopper_emulator import arithmetic, faults
from .hopper_emulator.fault import Fault
from .hopper_emulator.global_memory import FIRST, GlobalMemory, Seen
from .hopper_emulator.products import TARGET, Emulator

needs_compilers = needs(TARGET)
CLOSE = 2.0**-20  # of |x| |w|: float32 sums of exact products

# M, N, K; tile_k, stages, rounds, height; multiprocessors.
PRODUCTS = {
    "cut": ((5, 500, 304), (128, 2, 0, 2), 3),
    "cut short": ((5, 200, 300), (128, 2), 3),
    "whole tiles": ((1, 300, 500), (128, 3, 2), 2),
    "some cut": ((8, 384, 512), (128, 2, 1), 2),
    "long steps": ((17, 256, 512), (256, 2, 0), 2),
    "many stages": ((16, 640, 1024), (128, 8, 0), 4),
    "in many parts": ((16, 128, 1024), (128, 2, 0), 5),
    "64 rows": ((64, 256, 384), (128, 5, 0), 3),
    "256 rows": ((256, 128, 256), (128, 2, 0), 2),
}
FORMATS = (
    *("NVFP4", "MXFP8", "MXFP4", "INT4 g128 zeros", "FP8 row", "FP8 128x128", "INT4 g128"),
    *("INT8 row", "INT4 g32 zeros", "INT4 g32", "INT4 row zeros", "UINT8 row", "E5M2 row"),
)
FORMAT_PLANS = (
    ((5, 70, 140), (128, 2, 0), 2),
    ((16, 256, 512), (256, 2, 1), 2),
    ((40, 200, 1024), (256, 3, 0), 3),
    ((7, 256, 512), (256, 2, 0, 2), 2),
    ((64, 256, 384), (128, 3, 0, 2), 2),
)
# Rows of groups; M, N, K; multiprocessors.
GROUPS = {
    "three groups": ((2, 0, 9), (12, 200, 300), 3),
    "many groups": ((0, 8, 1, 0, 17, 3), (32, 200, 300), 3),
    "one group": ((5,), (5, 256, 128), 1),
    "no rows of any": ((0, 0), (3, 128, 128), 2),
}
SAMPLE = ("cut", "three groups")
ORDERS = 3  # in which a fault may be found
FEW = ("no wait for copies", "registers are not fenced")
# By products, whose code must have what is changed.
PLANTED = (
    {"long steps": faults.PRODUCT, "cut": faults.PARTS}
    if EVERYTHING
    else {"cut": {name: faults.PRODUCT[name] for name in FEW} | faults.PARTS}
)


def gaussian(n: int, k: int, codes: int = 40) -> np.ndarray:
    """Weights [n, k], some of them far from the others, some rows small or zero."""
    rng = np.random.default_rng(n + k)
    dense = (rng.standard_normal((n, k)) * 0.02).astype(ml_dtypes.bfloat16)
    at = rng.integers(0, n, codes), rng.integers(0, k, codes)
    far = rng.standard_normal(codes) * 2.0 ** rng.integers(-40, 30, codes)
    dense[at] = far.astype(ml_dtypes.bfloat16)
    dense[3], dense[5], dense[7, :9] = 0, dense[5].astype(np.float32) * 1e-6, -0.0
    return dense


def packed(name: str, n: int, k: int) -> Any:
    """A weight of a variant."""
    dense = jnp.asarray(gaussian(n, k) if name == "BF16" else gaussian(n, k, 0))
    weight = to_resident(weight_of(VARIANTS[name].number_format, dense), "gpu")
    assert weight.backend == "gpu", name
    return weight


def product(emulator: Any, shape: Any, config: Any, processors: int, name: str = "BF16") -> float:
    """The largest error of a product, as a share of |x| |w|."""
    m, n, k = shape
    weight = packed(name, n, k)
    dense = np.asarray(reference.decode(weight, jnp.float32))
    m = min(m, kernels_of(weight).plan(weight, m, GPUS[TARGET]).traits.most_rows)  # of a pass
    plan = make_plan(
        m=m,
        k=k,
        n=n,
        traits=kernels_of(weight).plan(weight, m, GPUS[TARGET]).traits,
        target=replace(GPUS[TARGET], multiprocessors=processors),
        config=Config(
            **dict(zip(("tile_k", "stages", "rounds", "height"), config, strict=False)),
        ),
    )
    x = np.random.default_rng(m).standard_normal((m, k)).astype(ml_dtypes.bfloat16)
    padded = np.zeros(plan.x_shape(m, k, interpret=False), ml_dtypes.bfloat16)
    padded[:m, :k] = x
    float32 = np.dtype(np.float32)
    of = Product(transpose_w=True, x_dtype=np.dtype(jnp.bfloat16), out_dtype=float32)
    with emulator.on():
        y = np.asarray(kernels_of(weight).multiply(jnp.asarray(padded), weight, plan, of))
    x, dense = x.astype(np.float64), dense.astype(np.float64)
    error = np.abs(y[:m, :n] - x @ dense.T) / (np.abs(x) @ np.abs(dense).T + 1e-30)
    return float(np.nan_to_num(error, nan=np.inf).max())


def grouped(
    emulator: Any, sizes: tuple[int, ...], shape: Any, processors: int, name: str = "BF16"
) -> float:
    """The largest error of a product of rows in groups; infinite if rows of none are not 0."""
    rows, n, k = shape
    escapes = 40 if name == "BF16" else 0
    values = np.stack([np.roll(gaussian(n, k, escapes), g, 0) for g in range(len(sizes))])
    weight = to_resident(weight_of(VARIANTS[name].number_format, jnp.asarray(values)), "gpu")
    assert weight.backend == "gpu", name
    dense = np.stack([np.asarray(reference.decode(one, jnp.float32)) for one in weight])
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(ml_dtypes.bfloat16)
    few = replace(GPUS[TARGET], multiprocessors=processors)
    of = Product(transpose_w=True, x_dtype=np.dtype(jnp.bfloat16), out_dtype=np.dtype(np.float32))
    with mock.patch.object(targets, "current_gpu", return_value=few), emulator.on():
        y = kernels_of(weight).grouped(jnp.asarray(x), weight, jnp.asarray(sizes), of)
    group = np.repeat(np.arange(len(sizes)), sizes)
    own, own_x = dense[group].astype(np.float64), x[: group.size].astype(np.float64)
    expected, scale = (np.einsum("rk,rnk->rn", f(own_x), f(own)) for f in (np.asarray, np.abs))
    error = np.abs(np.asarray(y[: group.size]) - expected) / (scale + 1e-30)
    rest = np.asarray(y[group.size :])
    return float(np.nan_to_num(error, nan=np.inf).max(initial=0)) if not rest.any() else np.inf


def decode(emulator: Any, dtype: Any, name: str = "BF16") -> float:
    """How many numbers of a decoded matrix differ, of codes of every kind."""
    if name == "BF16":
        dense = gaussian(128, 512)
        codes = np.random.default_rng(1).integers(0, 1 << 16, 300).astype(np.uint16)
        dense.view(np.uint16).reshape(-1)[:: dense.size // 300][:300] = codes
        weight = to_resident(jnp.asarray(dense), "gpu")
    else:
        weight = packed(name, 128, 256)
        dense = np.asarray(reference.decode(weight, dtype))
    one = replace(GPUS[TARGET], multiprocessors=1)
    with mock.patch.object(targets, "current_gpu", return_value=one), emulator.on():
        made = np.asarray(kernels_of(weight).decode(weight, np.dtype(dtype)))
    expected = np.asarray(jnp.asarray(dense).astype(dtype))
    unsigned = f"u{made.itemsize}"
    return float((made.view(unsigned) != expected.view(unsigned)).sum())


def main() -> None:
    """Emulates, and prints what came of it as JSON."""
    found: dict[str, Any] = {"product": {}, "decode": {}, "fault": {}}
    with tempfile.TemporaryDirectory() as folder:
        emulator = Emulator(Path(folder))

        def seen(run: Any, *arguments: Any) -> str:
            try:
                return str(run(emulator, *arguments))
            except Fault as fault:
                return f"fault: {fault}"

        def plant(planted: Any, run: Any, *arguments: Any) -> None:
            emulator.again = True
            for name, emulator.change in planted:
                for emulator.seed in range(ORDERS):
                    found["fault"][name] = seen(run, *arguments)
                    if found["fault"][name].startswith("fault"):
                        break
            emulator.again, emulator.change, emulator.seed = False, None, 0

        for name in PRODUCTS if EVERYTHING else set(PRODUCTS) & set(SAMPLE):
            found["product"][name] = seen(product, *PRODUCTS[name])
            plant(PLANTED.get(name, {}).items(), product, *PRODUCTS[name])
        for name in FORMATS if EVERYTHING else FORMATS[:1]:
            for plan in FORMAT_PLANS if EVERYTHING else FORMAT_PLANS[:1]:
                found["product"][f"{name} {plan}"] = seen(product, *plan, name)
            if EVERYTHING:
                found["product"][f"{name} groups"] = seen(grouped, *GROUPS["three groups"], name)
            for dtype in ("float32", "bfloat16") if EVERYTHING else ():
                found["decode"][f"{name} {dtype}"] = seen(decode, jnp.dtype(dtype), name)
        for name in GROUPS if EVERYTHING else set(GROUPS) & set(SAMPLE):
            found["product"][name] = seen(grouped, *GROUPS[name])
        for dtype in ("float32", "bfloat16") if EVERYTHING else ("bfloat16",):
            found["decode"][dtype] = seen(decode, jnp.dtype(dtype))
        plant(faults.DECODE.items(), decode, jnp.dtype(jnp.bfloat16))
    print(json.dumps(found))


@pytest.fixture(scope="module")
def emulated() -> dict[str, dict[str, str]]:
    """What came of every run: an error or a count, or the fault that was found."""
    return outputs(("-m", __name__))[0]


@needs_compilers
def test_products_are_right(emulated):
    assert set(SAMPLE) <= set(emulated["product"])
    for name, error in emulated["product"].items():
        assert float(error) < CLOSE, name


@needs_compilers
def test_decoded_matrices_have_every_bit(emulated):
    assert set(emulated["decode"].values()) == {"0.0"}


@needs_compilers
def test_planted_faults_are_found(emulated):
    assert len(emulated["fault"]) >= 4
    for name, result in emulated["fault"].items():
        assert result.startswith("fault: ") or float(result) > CLOSE, name


def test_numbers_are_rounded_once():
    """To bfloat16, subnormal ones too; ties to even."""
    codes = np.arange(1 << 16, dtype=np.uint16)
    numbers = arithmetic.bf16_of(codes)
    finite = np.isfinite(numbers)
    np.testing.assert_array_equal(arithmetic.to_bf16(numbers)[finite], codes[finite])
    near = finite[:-1] & finite[1:] & (codes[:-1] & 0x7FFF < 0x7F7F)
    numbers = np.where(finite, numbers, 0)
    between = numbers[:-1] * 0.5 + numbers[1:] * 0.5
    even = codes[:-1] + (codes[:-1] & 1)
    np.testing.assert_array_equal(arithmetic.to_bf16(between)[near], even[near])


def test_what_is_not_fenced_may_not_be_read():
    data = np.zeros((1, 4), np.uint8)
    at = np.array([FIRST])

    def other_reads(fence: bool, count: bool, acquire: bool) -> None:
        memory = GlobalMemory([np.zeros(4, np.uint8), np.zeros(4, np.uint8)], {})
        writer, reader = Seen(), Seen()
        memory.write(at, data, ("one", 0), writer)
        if fence:
            memory.fence(writer)
        if count:
            memory.atomic(memory.address(1), "add", 4, 1, {"relaxed"}, writer)
        assert memory.atomic(memory.address(1), "add", 4, 1, {"relaxed"}, reader) == count
        if acquire:
            memory.fence(reader)
        memory.read(at, 4, "other", reader)

    other_reads(True, True, True)
    with pytest.raises(Fault, match="not fenced"):
        other_reads(False, True, True)
    for count, acquire in ((False, True), (True, False)):
        with pytest.raises(Fault, match="not acquired"):
            other_reads(True, count, acquire)


if __name__ == "__main__":
    main()
