"""Bits shared out among tensors: exact programs, sensitivities, one slope."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jentropy.bench import kernel_times
from jentropy.errors import InputError
from jentropy.formats import INT4_GROUP, INT8_ROW
from jentropy.quantization import Recipe, Statistics, quantize_weights, rates, sensitivities
from jentropy.quantization.allocations import ByRole, Knapsack, Slope
from jentropy.quantization.allocations.programs import cheapest
from jentropy.quantization.alphabets import OfFormat, Uniform
from jentropy.quantization.scales import RmsStep

RTN = Recipe(alphabet=OfFormat(number_format=INT4_GROUP))


def total(table, ways):
    return sum(row[way] for row, way in zip(table, ways, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_program_is_solved_exactly(seed):
    draw = random.Random(seed)
    tensors, ways = draw.randint(1, 6), draw.randint(1, 4)
    cost = (lambda: draw.uniform(0, 5)) if seed % 2 else (lambda: float(draw.randint(0, 6)))
    costs = [[cost() for _ in range(ways)] for _ in range(tensors)]
    losses = [[draw.uniform(0, 9) for _ in range(ways)] for _ in range(tensors)]
    budget = sum(map(min, costs)) + draw.uniform(0, 8)
    all_of_them = itertools.product(range(ways), repeat=tensors)
    best = min(total(losses, each) for each in all_of_them if total(costs, each) <= budget)
    found = cheapest(costs, losses, budget)
    assert total(costs, found) <= budget
    assert math.isclose(total(losses, found), best)


def test_a_program_without_a_solution():
    with pytest.raises(InputError, match="at least 5"):
        cheapest([[5.0, 6.0]], [[1.0, 0.0]], 4.0)


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    weights = {f"layers.{n}.v_proj": draw.normal(size=(256, 128)).astype("f4") for n in range(3)}
    statistics = {}
    for n, name in enumerate(weights):
        x = draw.normal(size=(512, 128)) * np.exp(draw.normal(size=128)) * 2.0**n
        hessian = (x.T @ x / 512).astype("f4")
        statistics[name] = Statistics(
            hessian=hessian,
            low=x.min(0).astype("f4"),
            high=x.max(0).astype("f4"),
            gradient=0.5,
            tokens=512,
        )
    return weights, statistics


def test_sensitivities_are_what_they_say(problem):
    weights, statistics = problem
    asked: list[float] = []

    def loss(replaced):
        ((name, decoded),) = replaced.items()
        asked.append(float(np.square(decoded - weights[name]).sum()))
        return 3.0 * asked[-1]

    found = {
        kind: sensitivities.measured(kind, weights, RTN, statistics, loss)
        for kind in sensitivities.SENSITIVITIES
    }
    assert len(asked) == len(weights)
    for name, told in statistics.items():
        values = np.linalg.eigvalsh(np.asarray(told.hessian, np.float64))
        width = len(values)
        np.testing.assert_allclose(found["eigen"][name], 0.5 * values.max(), rtol=2e-3)
        np.testing.assert_allclose(found["trace"][name], values.sum() / width, rtol=1e-5)
        np.testing.assert_allclose(found["fisher"][name], 0.5 * values.sum() / width, rtol=1e-5)
        damped = values + sensitivities.DAMPING * values.mean()
        np.testing.assert_allclose(
            found["pivots"][name], 0.5 * np.exp(np.log(damped).mean()), rtol=1e-4
        )
        np.testing.assert_allclose(found["kl"][name], 3.0, rtol=1e-5)
        np.testing.assert_allclose(found["entropy"][name], 2 * math.pi * math.e, rtol=0.05)


def test_one_slope_costs_less_than_equal_shares(problem):
    weights, statistics = problem

    def lost(recipe):
        made = quantize_weights(weights, recipe, statistics, bits=2.5)
        assert abs(rates.estimated(made) - 2.5) < 0.03
        return sum(
            float(jnp.square(one.dequantize(jnp.float32) - weights[name]).mean())
            * float(statistics[name].sensitivity)
            for name, one in made.items()
        )

    steps = Recipe(alphabet=Uniform(), scales=RmsStep())
    assert lost(replace(steps, allocation=Slope())) < 0.8 * lost(steps)


def test_a_menu_is_chosen_from(problem):
    weights, statistics = problem
    menu = (OfFormat(number_format=INT4_GROUP), OfFormat(number_format=INT8_ROW))
    by_bits = Recipe(alphabet=menu[0], allocation=Knapsack(menu=menu))
    made = quantize_weights(weights, by_bits, statistics, bits=5.5)
    assert [one.number_format.name for one in made.values()] == ["INT4", "INT4", "INT8"]
    assert rates.estimated(made) < 5.5
    # By a cost of 1 and 2 a weight, the mean of which is to be 5/3, two may take the better one.
    by_time = Recipe(alphabet=menu[0], allocation=Knapsack(menu=menu, costs=(1.0, 2.0)))
    made = quantize_weights(weights, by_time, statistics, bits=5 / 3)
    assert [one.number_format.name for one in made.values()] == ["INT4", "INT8", "INT8"]
    with pytest.raises(InputError, match="at least"):
        quantize_weights(weights, by_time, statistics, bits=0.5)
    asked = []

    def loss(replaced):
        asked.extend(replaced)
        return float("layers.0.v_proj" in replaced)

    by_kl = Recipe(alphabet=menu[0], allocation=Knapsack(factors=(1.0, 4.0), sensitivity="kl"))
    made = quantize_weights(weights, by_kl, statistics, bits=3.0, loss=loss)
    assert len(asked) == 6


def test_a_menu_is_chosen_from_by_measured_time(problem):
    weights, statistics = problem
    menu = (OfFormat(number_format=INT4_GROUP), OfFormat(number_format=INT8_ROW))
    seconds = kernel_times.seconds_of(menu, (64, 128), backend="reference")
    assert all(time > 0 for time in seconds)
    for limit, name in ((min(seconds), ""), (max(seconds), "INT8")):
        allocation = Knapsack(menu=menu, costs=seconds, bits=1.001 * limit)
        made = quantize_weights(weights, replace(RTN, allocation=allocation), statistics)
        fastest = ("INT4", "INT8")[seconds.index(min(seconds))]
        assert {one.number_format.name for one in made.values()} == {name or fastest}


def test_roles_get_more():
    weights = {
        f"model.layers.{n}.{role}.weight": np.ones((4, 128), "f4")
        for n in range(8)
        for role in ("q_proj", "v_proj")
    }
    better = OfFormat(number_format=INT8_ROW)
    made = quantize_weights(
        weights, Recipe(alphabet=RTN.alphabet, allocation=ByRole(better=better))
    )
    finer = [name for name, one in made.items() if one.number_format.name == "INT8"]
    assert finer == [f"model.layers.{n}.v_proj.weight" for n in (0, 3, 6, 7)]
