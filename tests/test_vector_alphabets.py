"""Alphabets of vectors: searches find what is nearest, and bits buy what they are known to buy."""

from __future__ import annotations

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import MXFP4, UINT8, SideArray, Step
from jentropy.formats.decoders import DECODERS
from jentropy.formats.floats import FP32
from jentropy.formats.vectors import ball
from jentropy.quantization import RECIPES, Recipe, Statistics, distortions, quantize_weight, rates
from jentropy.quantization.alphabets import (
    E8,
    Ball,
    Codebooks,
    Dual,
    LowRankCorrected,
    OfFormat,
    ResidualColumns,
    Salient,
    SignRanks,
    Signs,
    Trellis,
)
from jentropy.quantization.alphabets.ball import nearest
from jentropy.quantization.alphabets.viterbi import best_paths
from jentropy.quantization.feedback import factor_of, root_of
from jentropy.quantization.prunings import Magnitude
from jentropy.quantization.scales import AbsoluteMean

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROWS, COLUMNS = 48, 132  # ragged against vectors of 8 and blocks of 64 and 128
VECTORS = {
    "trellis": Trellis(),
    "e8": E8(),
    "ball": Ball(),
    "product": Codebooks(dimensions=2, books=1, bits=4, shared=False),
    "additive": Codebooks(bits=6),
    "salient": Salient(),
    "dual": Dual(),
}


@cache
def problem() -> tuple[jax.Array, Statistics]:
    """A weight and inputs that go together."""
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(COLUMNS, COLUMNS)) * np.exp(-np.arange(COLUMNS) / 20)
    inputs = (rng.normal(size=(900, COLUMNS)) @ mix.T).astype(np.float32)
    told = Statistics(
        hessian=jnp.asarray(inputs.T @ inputs / len(inputs)),
        low=jnp.asarray(inputs.min(0)),
        high=jnp.asarray(inputs.max(0)),
        tokens=len(inputs),
    )
    return jax.random.normal(jax.random.key(3), (ROWS, COLUMNS)), told


def loss(alphabet, told: Statistics | None = None, *, weigh: bool = True) -> float:
    weight, known = problem()
    made = quantize_weight(weight, Recipe(alphabet=alphabet), told)
    here = known if weigh else Statistics.identity(COLUMNS)
    return float(distortions.weighted(weight, jnp.asarray(made.dequantize()), here))


@cache
def gaussian() -> jax.Array:
    weight = jax.random.normal(jax.random.key(0), (640, 1024))
    return weight / jnp.sqrt(jnp.square(weight).mean())


@pytest.mark.parametrize(
    ("alphabet", "bits", "factor", "gap"),
    [
        (Trellis(), 2.0, 1.025, 0.085),
        (Trellis(), 3.0, 0.515, 0.085),
        (Trellis(), 4.0, 0.258, 0.085),
        (Trellis(states=32), 2.0, 1.02, 0.068),
        (E8(), 3.0, 0.7, 0.158),
    ],
    ids=["trellis-2", "trellis-3", "trellis-4", "trellis32-2", "e8-3"],
)
def test_coded_bits_come_close_to_what_they_can_do(alphabet, bits, factor, gap):
    """At the factors that a search for the bits finds, which would take five times as long."""
    made = quantize_weight(gaussian(), Recipe(alphabet=alphabet), factor=factor)
    error = float(distortions.relative(gaussian(), jnp.asarray(made.dequantize())))
    coded = rates.coded(made)
    assert coded == pytest.approx(bits, abs=0.03)
    assert coded + 0.5 * np.log2(error) < gap  # D(R) of a Gaussian is 2^-2R


@pytest.mark.parametrize("states", [4, 8])
def test_paths_are_the_best_of_all(states):
    rows, columns, slope = 3, 6, 0.05
    targets = np.random.default_rng(states).normal(size=(rows, columns)).astype(np.float32)
    levels = (2 * (np.arange(8) - 4) + 0.5).astype(np.float32) * 0.6
    bits = np.abs(levels) + 1
    arguments = (jnp.asarray(a, jnp.float32) for a in (targets, levels, 0.6, bits, slope))
    found = np.asarray(best_paths(*arguments, states=states))
    step = Step(
        name="trellis",
        settings=(("states", states),),
        arrays=(SideArray(name="levels", element=FP32, shape=(8,)),),
    )
    # Levels 0 to 7 are those of codes 124 to 131, whose parities are theirs.
    every = np.array(list(itertools.product(range(8), repeat=columns)), np.uint8)

    def numbers(codes: np.ndarray) -> np.ndarray:
        shown = (codes + 124).astype(np.uint8)
        return DECODERS["trellis"].decode(step, UINT8, shown, {"levels": levels})

    for row in range(rows):
        cost = ((numbers(every) - targets[row]) ** 2).sum(1) + slope * bits[every].sum(1)
        mine = ((numbers(found[row : row + 1]) - targets[row]) ** 2).sum()
        mine += slope * bits[found[row]].sum()
        assert mine == pytest.approx(cost.min(), rel=1e-5)


def test_windows_lose_next_to_nothing():
    weight, told = problem()
    factor = factor_of(told.hessian)
    step = jnp.float32(0.4)
    levels = (2 * (jnp.arange(256.0) - 128) + 0.5) * step
    bits = jnp.abs(levels) / 4 + 1
    recipe = quantize_weight(weight, Recipe(alphabet=Trellis()), told)
    losses = {}
    for block in (16, 64, COLUMNS):
        codes = best_paths(weight, levels, step, bits, jnp.float32(1e-4), factor, block=block)
        whole = {"code": codes, "levels": jax.lax.bitcast_convert_type(levels[120:136], jnp.uint32)}
        decoded = type(recipe)(number_format=recipe.number_format, codes=whole).dequantize()
        losses[block] = float(distortions.weighted(weight, decoded, told))
    assert losses[16] < 1.1 * losses[COLUMNS]
    assert losses[64] < 1.05 * losses[COLUMNS]


def test_the_factor_is_that_of_the_inverse():
    told = problem()[1]
    hessian = np.asarray(told.hessian, np.float64)
    factor = np.asarray(factor_of(told.hessian, 0.1), np.float64)
    damped = hessian + 0.1 * np.diag(hessian).mean() * np.eye(COLUMNS)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor @ damped @ factor.T, np.eye(COLUMNS), atol=1e-2)


def test_a_matrix_that_is_not_definite_is_damped_until_it_is():
    indefinite = jnp.array([[1.0, 0.0, 1.05], [0.0, 1.0, 0.0], [1.05, 0.0, 1.0]])
    damped = np.asarray(indefinite) + 0.1 * np.eye(3)
    root = np.asarray(root_of(indefinite))
    np.testing.assert_allclose(root @ root.T, damped, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="positive semidefinite"):
        root_of(indefinite * jnp.nan)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_make_up_for_one_another(name):
    most = 0.9 if name == "salient" else 0.7  # nearly all columns are of one block
    assert loss(VECTORS[name], problem()[1]) < most * loss(VECTORS[name])


def test_the_nearest_of_the_ball_is_found():
    targets = 1.2 * np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    code, numbers = (np.asarray(a) for a in nearest(jnp.asarray(targets)))
    assert (ball()[code] == numbers).all()
    distance = ((targets[:, None] - ball()[None]) ** 2).sum(2)
    np.testing.assert_allclose(((targets - numbers) ** 2).sum(1), distance.min(1), rtol=1e-4)


def test_sums_of_books_are_fitted_together():
    """Better than one book of as many bits in all, and than ECSQ's share of vectors of one."""
    together, alone = Codebooks(dimensions=4, bits=4), Codebooks(dimensions=2, books=1, bits=4)
    assert loss(together, weigh=False) < loss(alone, weigh=False) * 1.05
    more = Codebooks(dimensions=4, books=3, bits=4)
    assert loss(more, weigh=False) < 0.5 * loss(together, weigh=False)


def test_more_planes_lose_less():
    signs = quantize_weight(
        problem()[0], Recipe(alphabet=Signs(group=64), scales=AbsoluteMean())
    ).dequantize()
    once = float(jnp.square(signs - problem()[0]).sum())
    twice = loss(Salient(block=64), weigh=False)
    assert twice < loss(Dual(), weigh=False) < 0.5 * once
    blocks = [loss(SignRanks(blocks=n), weigh=False) for n in (1, 2, 3)]
    assert blocks[1] < 0.5 * blocks[0]
    assert blocks[2] < 0.5 * blocks[1]


def test_corrections_lose_less():
    weight, told = problem()
    plain = OfFormat(number_format=MXFP4)
    base = loss(plain, told)
    assert loss(LowRankCorrected(alphabet=plain, rank=16), told) < 0.9 * base
    residual = ResidualColumns(alphabet=plain, share=0.25)
    both = LowRankCorrected(alphabet=residual, rank=16)
    assert loss(both, told) < loss(residual, told) < 0.8 * base
    recipe = Recipe(alphabet=both, transforms=RECIPES["quip"].transforms)
    made = quantize_weight(weight, recipe, told)
    assert [step.name for step in made.number_format.transforms] == [
        "hadamard",
        "hadamard",
        "low_rank",
        "residual_columns",
    ]


def test_vectors_have_no_zeros_for_pruned_weights():
    recipe = Recipe(alphabet=Trellis(), pruning=Magnitude())
    with pytest.raises(UnsupportedError, match="pruning before Trellis"):
        quantize_weight(problem()[0], recipe)
