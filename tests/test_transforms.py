"""Transforms and prunings: what is undone is what was, and errors weigh what they did."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.formats import FORMATS, INT4_GROUP
from jentropy.quantization import (
    PRUNINGS,
    TRANSFORMS,
    Recipe,
    Statistics,
    distortions,
    quantize_weight,
)
from jentropy.quantization.alphabets import Integer, OfFormat
from jentropy.quantization.transforms import (
    Hadamard,
    LearnedScales,
    LowRank,
    Outliers,
    Searched,
    SortedColumns,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")
EXACT = OfFormat(number_format=FORMATS["FP32"])
ROWS, COLUMNS = 24, 24
KINDS = {
    **{name: kind() for name, kind in TRANSFORMS.items()},
    "hadamard of rows": Hadamard(axis=0),
    "hadamard of blocks": Hadamard(block=4),
    "low rank, all of it": LowRank(rank=99),
    "outliers by loss": Outliers(share=0.1, by_loss=True, clamped=False),
    "outliers, eight bits": Outliers(share=0.1, exponent=3),
    "sorted by ends": SortedColumns(by_largest=True),
}


def problem(rows: int = ROWS, columns: int = COLUMNS) -> tuple[jax.Array, Statistics]:
    """A weight and its inputs, which go together and of which some are outliers."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(4 * columns, columns)) @ rng.normal(size=(columns, columns))
    inputs = inputs * np.exp(rng.normal(size=columns)) + 1
    weight = rng.normal(size=(rows, columns)) * np.exp(rng.normal(size=columns) / 2)
    told = Statistics(
        hessian=jnp.asarray(inputs.T @ inputs / len(inputs), jnp.float32),
        low=jnp.asarray(np.minimum(inputs.min(0), 0), jnp.float32),
        high=jnp.asarray(np.maximum(inputs.max(0), 0), jnp.float32),
        tokens=len(inputs),
    )
    return jnp.asarray(weight, jnp.float32), told


@pytest.mark.parametrize("name", KINDS)
def test_transforms_are_undone(name):
    weight, told = problem()
    back = quantize_weight(weight, Recipe(alphabet=EXACT, transforms=(KINDS[name],)), told)
    if name.startswith("outliers"):  # which are rounded
        assert (jnp.abs(back.dequantize() - weight) > 1e-6).mean() <= 0.101
        rounded = 2**-8 if KINDS[name].exponent == 0 else 2**-5
        np.testing.assert_allclose(back.dequantize(), weight, rtol=rounded)
        return
    scale = float(jnp.abs(weight).max())
    np.testing.assert_allclose(back.dequantize() / scale, weight / scale, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_errors_weigh_what_they_did(name):
    weight, told = problem()
    there = KINDS[name].forward(weight, told, jax.random.fold_in(jax.random.key(0), 0), "")
    error = jax.random.normal(jax.random.key(5), weight.shape) / 8
    back = quantize_weight(weight, Recipe(alphabet=EXACT, transforms=(KINDS[name],)), told)
    moved = there.weight + error if "outliers" not in name else there.weight
    code = jax.lax.bitcast_convert_type(moved, jnp.uint32)
    decoded = replace(back, codes=dict(back.codes, code=code)).dequantize()
    expected = distortions.weighted(weight, decoded, told)
    if "outliers" not in name:
        found = distortions.weighted(there.weight, moved, there.statistics)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert (jnp.asarray(there.statistics.low) <= there.statistics.high).all()


@pytest.mark.parametrize(
    ("rounded", "kind"),
    [
        (OfFormat(number_format=INT4_GROUP), Searched()),
        (Integer(bits=3, symmetric=False), LearnedScales()),
    ],
    ids=["searched", "learned"],
)
def test_scales_of_columns_lose_less_than_none(rounded, kind):
    weight, told = problem(64, 96)
    plain = quantize_weight(weight, Recipe(alphabet=rounded), told).dequantize()
    scaled = Recipe(alphabet=rounded, transforms=(kind,))
    better = quantize_weight(weight, scaled, told).dequantize()
    losses = [float(distortions.weighted(weight, one, told)) for one in (plain, better)]
    assert losses[1] < 0.9 * losses[0]


def test_a_branch_of_low_rank_is_the_closest():
    weight = problem(40, 64)[0]
    told = Statistics.identity(64)
    there = LowRank(rank=5).forward(weight, told, jax.random.key(0), "")
    values = np.linalg.svd(np.asarray(weight), compute_uv=False)
    least = float((values[5:] ** 2).sum())
    assert least * 0.999 < float(jnp.square(there.weight).sum()) < least * 1.02


def test_rotations_make_outliers_ordinary():
    weight = jnp.zeros((8, 64), jnp.float32).at[3, 5].set(8.0)
    there = Hadamard().forward(weight, Statistics.identity(64), jax.random.key(0), "")
    assert float(jnp.abs(there.weight).max()) == pytest.approx(1.0)


def test_gaps_reach_any_distance():
    weight = jnp.zeros((2, 70_000), jnp.float32).at[0, 3].set(9.0).at[1, 69_000].set(-7.0)
    recipe = Recipe(alphabet=EXACT, transforms=(Outliers(share=2 / 140_000),))
    assert (quantize_weight(weight, recipe).dequantize() == weight).all()


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
@pytest.mark.parametrize("name", PRUNINGS)
def test_prunings_keep_what_they_say(name, pattern):
    weight, told = problem(10, 38)
    left, mask = PRUNINGS[name](pattern=pattern).prune(weight, told)
    assert (left.shape, mask.dtype) == (weight.shape, jnp.bool_)
    assert (jnp.where(mask, 0, left) == 0).all()
    if pattern is None:
        assert (mask.sum(axis=1) == 19).all()
        return
    n, m = pattern
    groups = np.pad(np.asarray(mask), ((0, 0), (0, -38 % m))).reshape(10, -1, m)
    assert (groups[:, : 38 // m].sum(axis=2) == n).all()
    assert (groups.sum(axis=2) <= n).all()


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_prunings_that_know_the_inputs_lose_less(pattern):
    weight, told = problem(32, 64)
    losses = [
        float(distortions.weighted(weight, kind(pattern=pattern).prune(weight, told)[0], told))
        for kind in PRUNINGS.values()
    ]
    assert losses[0] > losses[1] > losses[2]  # magnitude, Wanda, SparseGPT


def test_what_makes_up_for_pruned_weights_is_the_best_of_its_column():
    """Of two columns, the second is what least squares make of it once the first is gone."""
    weight = jnp.array([[0.1, 3.0]])
    hessian = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    ends = jnp.ones(2)
    told = Statistics(hessian=hessian, low=-ends, high=ends)
    left, _ = PRUNINGS["sparsegpt"](pattern=(1, 2), damping=0.0).prune(weight, told)
    np.testing.assert_allclose(left, [[0.0, 3.0 + 0.1 / 3]], rtol=1e-5)
