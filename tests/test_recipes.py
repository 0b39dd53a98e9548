"""Every recipe: what is decoded is what was scored, bits are coded bits, rounding is worth it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy.errors import InputError
from jentropy.formats import INT4_GROUP, INT8_ROW, QuantizedTensor, dequantize, quantize
from jentropy.quantization import (
    ALLOCATIONS,
    ALPHABETS,
    PRUNINGS,
    RECIPES,
    ROUNDINGS,
    SCALES,
    TRANSFORMS,
    Recipe,
    Statistics,
    distortions,
    quantize_weight,
    quantize_weights,
    rates,
)
from jentropy.quantization.allocations import Slope
from jentropy.quantization.alphabets import Integer, OfFormat, Uniform
from jentropy.quantization.grid import Grid
from jentropy.quantization.knob import turned
from jentropy.quantization.roundings import Nearest, Sequential, Stochastic
from jentropy.quantization.scales import AbsoluteMean, RmsStep, Rules

from . import plain_weights

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROWS, COLUMNS = 24, 328  # ragged against every block and group; a multiple of 8
# Recipes that are not held to rounding to nearest: they are it, or right on average instead.
BY_CHANCE = {"stochastic"}


@cache
def problem() -> tuple[jax.Array, Statistics]:
    """A weight, and inputs that are correlated and of uneven power."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((ROWS, COLUMNS)) * np.exp(0.3 * rng.standard_normal((ROWS, 1)))
    mix = rng.standard_normal((COLUMNS, COLUMNS)) * np.exp(-np.arange(COLUMNS) / 60)
    x = (rng.standard_normal((1500, COLUMNS)) @ mix.T).astype(np.float32)
    return jnp.asarray(weight, jnp.float32), Statistics(
        hessian=jnp.asarray(x.T @ x / len(x)),
        low=jnp.asarray(x.min(0)),
        high=jnp.asarray(x.max(0)),
        gradient=jnp.float32(1.0),
        tokens=len(x),
    )


@cache
def quantized(name: str) -> QuantizedTensor:
    weight, statistics = problem()
    return quantize_weight(weight, RECIPES[name], statistics, key=jax.random.key(1))


@jax.jit
def numbers(weight: QuantizedTensor) -> jax.Array:
    """As one program: operation by operation they would be dozens for every recipe."""
    return weight.dequantize()


def lost(weight: QuantizedTensor) -> float:
    return float(distortions.weighted(problem()[0], numbers(weight), problem()[1]))


def test_every_entry_of_every_table_is_in_a_recipe():
    recipes = RECIPES.values()
    alphabets = {type(recipe.alphabet) for recipe in recipes}
    assert alphabets >= set(ALPHABETS.values())
    assert {type(recipe.rounding) for recipe in recipes} >= set(ROUNDINGS.values())
    assert {type(recipe.scales) for recipe in recipes} >= set(SCALES.values())
    assert {type(t) for recipe in recipes for t in recipe.transforms} >= set(TRANSFORMS.values())
    assert {type(recipe.pruning) for recipe in recipes} >= set(PRUNINGS.values())
    assert "equal" in ALLOCATIONS
    assert all(hash(recipe) == hash(dataclasses.replace(recipe)) for recipe in recipes)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_what_they_say_and_worth_their_bits(name):
    """One test, since both parts compile the same programs."""
    decoded_is_what_was_scored(name)
    if twin(name) != RECIPES[name] and name not in BY_CHANCE:
        rounding_and_scales_are_worth_their_bits(name)


def decoded_is_what_was_scored(name: str) -> None:
    weight, _ = problem()
    made = quantized(name)
    assert made.shape == weight.shape
    decoded = np.asarray(numbers(made))
    assert np.isfinite(decoded).all()
    assert float(distortions.relative(weight, jnp.asarray(decoded))) < 0.9
    packed = jentropy.compress(made)
    again = jentropy.decompress(packed)
    assert again.number_format == made.number_format
    assert np.asarray(numbers(again)).tobytes() == decoded.tobytes()
    on_host = dataclasses.replace(again, codes=jax.tree.map(np.asarray, again.codes))
    assert np.allclose(on_host.dequantize(), decoded, rtol=2e-6, atol=2e-6)
    resident = jentropy.to_resident(made, "reference")
    dense = jentropy.decode(resident, jnp.float32) if hasattr(resident, "stack") else resident
    assert np.allclose(np.asarray(dense, np.float32), decoded, rtol=2e-6, atol=2e-6)
    bits = made.number_format.allocated_bits(made.shape)
    assert rates.coded(made) < bits + 0.1
    small = 8 * 40 * (len(made.codes) - 1) / weight.size  # lanes and tables of what lies beside
    assert abs(rates.coded(made) - rates.estimated(made)) < 0.05 * bits + 0.2 + small


def twin(name: str) -> Recipe:
    """The same alphabet, its weights rounded to nearest by the rule that it has."""
    recipe = RECIPES[name]
    scales = recipe.scales if isinstance(recipe.scales, RmsStep | AbsoluteMean) else Rules()
    return dataclasses.replace(recipe, rounding=Nearest(), scales=scales)


def rounding_and_scales_are_worth_their_bits(name: str) -> None:
    weight, statistics = problem()
    made = quantized(name)
    plain = quantize_weight(weight, twin(name), statistics)
    more = rates.estimated(made) - rates.estimated(plain)
    if abs(more) > 0.01:
        # What is coarser by a factor of two takes a bit less, and costs four times the error.
        factor = 2.0**-more
        plain = quantize_weight(weight, twin(name), statistics, factor=factor)
        more = rates.estimated(made) - rates.estimated(plain)
    assert lost(made) <= lost(plain) * 4.0 ** -max(-0.25, min(0.25, more)) * 1.02


def test_sequential_rounding_is_gptq():
    """Against the paper's own form, with the inverse of E[x x^T], in float64."""
    weight, statistics = problem()
    for act_order in (False, True):
        recipe = Recipe(alphabet=Integer(bits=4, group=0), rounding=Sequential(act_order=act_order))
        made = quantize_weight(weight, recipe, statistics)
        hessian = np.asarray(statistics.hessian, np.float64)
        hessian = hessian + 0.01 * np.trace(hessian) / COLUMNS * np.eye(COLUMNS)
        order = np.argsort(-np.diag(np.asarray(statistics.hessian)), kind="stable")
        order = order if act_order else np.arange(COLUMNS)
        inverse = np.linalg.inv(hessian[order][:, order])
        factor = np.linalg.cholesky(inverse).T
        left = np.asarray(weight, np.float64)[:, order]
        (scale,) = made.number_format.parameters
        step = scale.element.decode(np.asarray(made.codes["scale"])).astype(np.float64)
        expected = np.empty_like(left)
        for k in range(COLUMNS):
            code = np.clip(np.round(left[:, k : k + 1] / step), -8, 7)
            expected[:, k : k + 1] = code * step
            error = (left[:, k : k + 1] - expected[:, k : k + 1]) / factor[k, k]
            left[:, k:] -= error * factor[k, k:]
        found = np.asarray(made.dequantize())[:, order]
        # Sums in float32 fall to the other side of a threshold now and then.
        assert (np.abs(found - expected) > 1e-4).mean() < 0.02


def test_stochastic_rounding_is_right_on_average():
    weight, statistics = problem()
    recipe = RECIPES["stochastic"]
    keys = jax.random.split(jax.random.key(3), 64)
    made = [quantize_weight(weight, recipe, statistics, key=key) for key in keys]
    again = quantize_weight(weight, recipe, statistics, key=keys[0])
    assert (again.codes["code"] == made[0].codes["code"]).all()
    errors = np.stack([np.asarray(one.dequantize()) for one in made]) - np.asarray(weight)
    spread = errors.std()
    assert spread > 0.01
    assert abs(errors.mean()) < 4 * spread / errors.size**0.5
    means = errors.mean(0)
    # Extents are rounded to BF16, so that a block's largest may saturate: few of them.
    assert (np.abs(means) > 5 * spread / len(keys) ** 0.5).mean() < 0.01


@pytest.mark.parametrize("name", ["rtn", "default", "ecsq"])
def test_coded_bits_are_entropy_and_tables(name):
    weight = jax.random.normal(jax.random.key(0), (1000, 1000))
    made = quantize_weight(weight, RECIPES[name])
    assert abs(rates.coded(made) - rates.estimated(made)) < 0.02
    if name == "ecsq":  # D(R) of a Gaussian is 2^-2R
        relative = float(distortions.relative(weight, made.dequantize()))
        assert rates.coded(made) + 0.5 * np.log2(relative) < 0.27


@pytest.mark.parametrize("name", ["rtn", "default"])
@pytest.mark.parametrize("bits", [2.0, 3.0])
def test_bits_that_are_asked_for_are_met(name, bits):
    weight, statistics = problem()
    weights = {"a": weight, "b": weight[: ROWS // 2] * 3}
    made = quantize_weights(weights, RECIPES[name], {"a": statistics}, bits=bits)
    assert abs(rates.coded(made) - bits) < 0.08


def test_bits_go_where_they_lower_the_loss():
    weight, statistics = problem()
    weights = {"a": weight, "b": weight + 0}
    told = {"a": statistics, "b": dataclasses.replace(statistics, gradient=jnp.float32(16.0))}
    shares = Slope().shares(weights, RECIPES["default"], told, None, None)
    assert shares["a"].factor == pytest.approx(4 * shares["b"].factor)
    made = quantize_weights(weights, RECIPES["default"], told, bits=3.0)
    assert rates.coded(made["b"]) - rates.coded(made["a"]) == pytest.approx(2, abs=0.2)


def test_matrices_of_a_stack_are_those_alone(unchecked):
    weight, statistics = problem()
    stack = jnp.stack([weight, 2 * weight]).reshape(2, 1, ROWS, COLUMNS)
    recipe = RECIPES["gptq"]
    whole = quantize_weight(stack, recipe, statistics)
    assert whole.shape == stack.shape
    for i in range(2):
        alone = quantize_weight(stack[i, 0], recipe, statistics).dequantize()
        assert (whole.dequantize()[i, 0] == alone).all()
    with pytest.raises(InputError, match="two axes"):
        quantize_weight(weight[0], recipe)


def test_a_mask_stays_zero_and_others_make_up_for_it():
    weight, statistics = problem()
    mask = jnp.arange(COLUMNS)[None, :] % 2 + jnp.zeros((ROWS, 1), jnp.int32) > 0
    parameters = {"scale": quantize(weight, INT8_ROW)["scale"]}
    grid = Grid(number_format=INT8_ROW, parameters=parameters)
    errors = {}
    for rounding in (Nearest(), Sequential(), Sequential(slope=0.5)):
        code = rounding.round(weight, grid, statistics, mask, jax.random.key(0))
        decoded = dequantize(INT8_ROW, {"code": code, **parameters})
        assert (jnp.where(mask, 0.0, decoded) == 0).all()
        errors[rounding] = float(distortions.weighted(weight, decoded, statistics))
    assert errors[Sequential()] < 0.7 * errors[Nearest()]


def test_a_slope_takes_bits_where_they_are_worth_least():
    weight, statistics = problem()

    def recipe(slope: float) -> Recipe:
        rounding = Sequential(slope=slope)
        return Recipe(alphabet=Uniform(), scales=RmsStep(), rounding=rounding)

    plain, sloped = (quantize_weight(weight, recipe(s), statistics, bits=2.0) for s in (0.0, 0.5))
    assert rates.coded(sloped) < rates.coded(plain) + 0.03
    assert lost(sloped) < lost(plain)


@pytest.mark.parametrize(("name", "error"), [("q2-k", 0.0745), ("q3-k", 0.0215), ("q4-k", 0.0053)])
def test_k_quants_lose_what_their_scales_let_them(name, error):
    weight = jax.random.normal(jax.random.key(0), (64, 1024))
    made = quantize_weight(weight, RECIPES[name])
    assert float(distortions.relative(weight, numbers(made))) < error


def test_weights_are_held_one_at_a_time():
    weight, statistics = problem()
    names, alive = "0123", list[weakref.ref]()

    def made(name: str) -> np.ndarray:
        return np.asarray(weight) * np.float32(1 + int(name))

    class Read(Mapping):
        """Weights that are made when they are asked for."""

        def __getitem__(self, name: str) -> np.ndarray:
            # One before it is let go as this one is taken; another may still be computed with.
            assert sum(one() is not None for one in alive) <= 2
            found = made(name)
            alive.append(weakref.ref(found))
            return found

        def __iter__(self):
            return iter(names)

        def __len__(self) -> int:
            return len(names)

    kept = quantize_weights(
        Read(),
        RECIPES["default"],
        dict.fromkeys(names, statistics),
        bits=3.0,
        keep=lambda one: jentropy.compress(one),
    )
    assert len(alive) >= 2 * len(names)  # for their bits, and for good
    assert abs(rates.coded(kept) - 3) < 0.08
    for name, packed in kept.items():
        one = jentropy.decompress(packed)
        assert rates.coded(one) == rates.coded(packed)
        assert float(distortions.relative(jnp.asarray(made(name)), numbers(one))) < 0.5


def test_the_knob_says_which_bits_there_are():
    assert turned(lambda factor: max(0.0, 4 - np.log2(factor)), 2.5) == pytest.approx(
        2**1.5, rel=0.01
    )
    with pytest.raises(InputError, match="bits of a weight"):
        turned(lambda factor: min(4.0, 4 - np.log2(factor)), 5.0)
    for bits in (0.0, float("nan")):
        with pytest.raises(InputError, match="a number above 0"):
            turned(lambda factor: 4 - np.log2(factor), bits)


def test_without_calibration_columns_weigh_the_same():
    weight, _ = problem()
    told = quantize_weight(weight, RECIPES["gptq"])
    plain = quantize_weight(weight, Recipe(alphabet=OfFormat(number_format=INT4_GROUP)))
    assert (told.codes["code"] == plain.codes["code"]).all()
    assert isinstance(RECIPES["stochastic"].rounding, Stochastic)


def test_a_plain_decoder_has_the_same_numbers(tmp_path):
    """From FORMAT.md alone: own elements, parameters of parameters, tables, choices."""
    names = (
        "rtn-nvfp4",
        "q4-k",
        "q3-k",
        "nf4",
        "fp6-llm",
        "ecsq",
        "bitmod3",
        "rtn-int3-asymmetric",
    )
    made = {name: quantized(name) for name in names}
    jentropy.save(tmp_path / "w", jentropy.compress(made))
    for name, plain in plain_weights.weights(tmp_path / "w"):
        on_host = dataclasses.replace(made[name], codes=jax.tree.map(np.asarray, made[name].codes))
        assert (plain == on_host.dequantize()).all(), name
