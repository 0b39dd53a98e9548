"""grouped_matmul by TPU's kernels in interpret mode: one kernel for all groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import modes
from jentropy import pallas_kernels as kernels
from jentropy.pallas_kernels import fused, targets
from jentropy.pallas_kernels.targets import TPUS
from jentropy.pallas_kernels.tpu import grouped
from jentropy.pallas_kernels.tpu.grouped import CHUNK, HIGH, LOW, MATRIX, PLACE, START
from jentropy.pallas_kernels.tpu.plan import ROWS
from jentropy.pallas_kernels.tpu_nvfp4.plan import FEW
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

from .interpreted import decode

pytestmark = pytest.mark.usefixtures("compiled_quickly")
VISITS = modes.standard(grouped.visits_of)  # as the product calls it
GROUPS, N, K = 5, 120, 520
SIZES = ([3, 0, 9, 1, 10], [0, 0, 4, 0, 0], [0, 23, 0, 0, 0], [0, 0, 0, 0, 0], [8, 2, 1, 0, 7])
FORMATS = ["BF16", "FP8 row", "FP8 128x128"]


def experts(name: str, shape=(GROUPS, N, K), target="v5e") -> kernels.ResidentTensor:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.02
    values[..., ::16, ::17] *= 2.0**7  # escapes of window12
    with targets.taken_for(target):
        w = kernels.to_resident(
            weight_of(VARIANTS[name].number_format, jnp.asarray(values, jnp.bfloat16)), "tpu"
        )
    assert w.backend == "tpu"
    assert fused.kernels_of(w).grouped is not None
    return w


def inputs(rows: int, dtype=jnp.bfloat16) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((rows, K)), dtype)


def ints(sizes) -> jax.Array:
    return jnp.asarray(sizes, jnp.int32)


def dense_of(w) -> np.ndarray:
    """The numbers of all groups."""
    return np.asarray(decode(w, jnp.float32, "hlo"), np.float64)


def check(y, x, dense, sizes) -> None:
    """Against products in float64, group after group, and 0 in rows of none."""
    expected, first = np.zeros((x.shape[0], dense.shape[1])), 0
    for matrix, size in zip(dense, sizes, strict=True):
        rows = np.asarray(x[first : first + size], np.float64)
        expected[first : first + size] = rows @ matrix.T
        first += size
    np.testing.assert_allclose(y, expected, atol=4e-6 * max(1e-6, np.abs(expected).max()))
    assert not np.asarray(y)[first:].any()


def product(x, w, sizes, **options) -> jax.Array:
    options = {"interpret": "hlo", "out_dtype": jnp.float32} | options
    return jentropy.grouped_matmul(x, w, ints(sizes), True, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_group_has_its_product(name):
    w, x = experts(name), inputs(25)
    dense = dense_of(w)
    run = jax.jit(lambda x, w, sizes: product(x, w, sizes))
    assert str(run.trace(x, w, ints(SIZES[0])).jaxpr).count("pallas_call") == 1
    for sizes in SIZES:
        check(run(x, w, ints(sizes)), x, dense, sizes)


@pytest.mark.parametrize("target", ["v6e", "v7x"])
def test_groups_of_few_rows_have_small_windows(target):
    """Of NVFP4, whose rows are spread there: several windows in a register of results."""
    w, few = experts("NVFP4", target=target), FEW[target]
    with targets.taken_for(target):
        for each in (few // 2 * GROUPS, few * GROUPS):  # as many as are few, and more
            plan = fused.kernels_of(w).grouped_plan(w, each)
            assert plan.tile.m == (few if each == few // 2 * GROUPS else ROWS)
        x, dense = inputs(few // 2 * GROUPS), dense_of(w)
        run = jax.jit(lambda x, w, sizes: product(x, w, sizes))
        for sizes in ([few - 1, 0, few + 2 - few % 3, 1, 0], [0, 0, 0, 0, len(x)]):
            check(run(x, w, ints(sizes)), x, dense, sizes)


@pytest.mark.parametrize("seed", range(6))
def test_visits(seed):
    """Every row of a group is kept once, and the matrix of a group comes once in a chunk."""
    rng = np.random.default_rng(seed)
    groups, rows = ((5, 700), (256, 90), (1, 33), (64, 2100), (8, 16), (256, 4096))[seed]
    tile = fused.kernels_of(experts("FP8 row")).plan(experts("FP8 row"), rows, TPUS["v6e"])
    plan = grouped.make_plan(tile, rows, groups, bits_per_weight=8, unit=128, accumulators=1)
    sizes = rng.multinomial(rows - rng.integers(0, 9), rng.dirichlet(np.full(groups, 0.3)))
    ends = np.cumsum(sizes)
    table, count = VISITS(ints(ends), ints(np.arange(groups) + 7), plan)
    assert 1 <= count <= table.shape[1]
    table = np.asarray(table)[:, : int(count)]
    taken = np.full(plan.rows, -1)
    for at in table.T:
        window = at[CHUNK] * plan.chunk + at[START] + np.arange(at[LOW], at[HIGH])
        assert at[START] % ROWS == 0
        assert 0 <= at[START] <= plan.chunk - plan.tile.m
        assert 0 <= at[LOW] < at[HIGH] <= plan.tile.m
        assert (taken[window] == -1).all()
        taken[window] = at[MATRIX]
    np.testing.assert_array_equal(taken[: ends[-1]], np.repeat(np.arange(groups), sizes))
    assert (taken[ends[-1] :] == -1).all()
    np.testing.assert_array_equal(table[PLACE], table[MATRIX] + 7)
    read = table[[CHUNK, MATRIX]].T
    runs = 1 + (read[1:] != read[:-1]).any(1).sum()
    assert runs == len(np.unique(read, axis=0))
    assert runs < plan.chunks + (sizes > 0).sum()


def test_no_group_has_rows():
    tile = fused.kernels_of(experts("FP8 row")).plan(experts("FP8 row"), 9, TPUS["v6e"])
    plan = grouped.make_plan(tile, 9, 4, bits_per_weight=8, unit=128, accumulators=1)
    table, count = VISITS(ints([0] * 4), ints(range(4)), plan)
    assert count == 1
    assert table[LOW, 0] >= table[HIGH, 0]
