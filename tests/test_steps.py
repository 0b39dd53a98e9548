"""Decoders and transforms of formats: in NumPy and JAX alike, and what does not fit is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jentropy.errors import CorruptError
from jentropy.formats import (
    DECODERS,
    FP32,
    TRANSFORMS,
    UINT8,
    Format,
    QuantizedTensor,
    SideArray,
    Step,
    document,
    raw_element,
)
from jentropy.formats.hadamard import base, is_order, largest_block, rotated
from jentropy.formats.trellises import CHECKS, trellis
from jentropy.formats.vectors import ball, words

from . import plain_steps

ROWS, COLUMNS = 6, 20
UINT16 = replace(
    UINT8, name="UINT16", dtype=np.dtype(np.uint16), fields=(replace(UINT8.fields[0], bits=16),)
)


def whole(name: str, dtype: str, *shape: int) -> SideArray:
    return SideArray(name=name, element=raw_element(np.dtype(dtype)), shape=shape)


def real(name: str, *shape: int) -> SideArray:
    return SideArray(name=name, element=FP32, shape=shape)


# Of every decoder and transform a step for weights [6, 20], and bounds of its whole numbers.
STEPS = {
    "elementwise": Step(name="elementwise"),
    "levels": Step(name="levels", arrays=(real("levels", 9),)),
    "choices": Step(
        name="choices",
        settings=(("group", 8),),
        arrays=(real("tables", 3, 5), whole("choice", "uint8", ROWS, 3)),
    ),
    "trellis": Step(name="trellis", settings=(("states", 8),), arrays=(real("levels", 9),)),
    "e8": Step(name="e8", arrays=(real("levels", 9), whole("words", "uint8", ROWS, 3))),
    "ball": Step(name="ball", settings=(("columns", COLUMNS),)),
    "codebook": Step(
        name="codebook", settings=(("columns", COLUMNS),), arrays=(real("books", 5, 2, 7, 4),)
    ),
    "planes": Step(
        name="planes", arrays=(real("scales", 3, ROWS, 2), whole("groups", "uint8", COLUMNS))
    ),
    "sign_ranks": Step(
        name="sign_ranks", arrays=(real("left", 3, ROWS, 2), real("right", 3, 2, COLUMNS))
    ),
    "columns": Step(name="columns", arrays=(real("scale", COLUMNS),)),
    "hadamard": Step(
        name="hadamard",
        settings=(("axis", 1), ("block", COLUMNS)),
        arrays=(whole("signs", "uint8", COLUMNS),),
    ),
    "permutation": Step(name="permutation", arrays=(whole("places", "uint16", COLUMNS),)),
    "low_rank": Step(name="low_rank", arrays=(real("left", ROWS, 2), real("right", 2, COLUMNS))),
    "outliers": Step(name="outliers", arrays=(whole("gaps", "uint16", 5), real("values", 5))),
    "residual_columns": Step(
        name="residual_columns",
        settings=(("block", 2),),
        arrays=(
            whole("places", "uint16", 3),
            replace(real("second", ROWS, 3), element=UINT8),
            real("scale", ROWS, 2),
        ),
    ),
    "shift": Step(name="shift", arrays=(real("shift", COLUMNS),)),
}


def made(name: str, stack: tuple[int, ...] = ()) -> QuantizedTensor:
    """A tensor that the step of a name is part of."""
    step, rng = STEPS[name], np.random.default_rng(0)
    if name in DECODERS:
        element = UINT16 if name == "ball" else UINT8
        told = Format(name=name, element=element, decoder=step)
    else:
        told = Format(name=name, element=UINT8, transforms=(step,))
    shape = (*stack, ROWS, COLUMNS)
    codes = {"code": rng.integers(0, 1 << 16, told.code_shape(shape)).astype(told.element.dtype)}
    for own in step.arrays:
        mine = (*stack, *own.shape)
        if own.element.name == "RAW":
            numbers = np.sort(
                rng.permuted(np.broadcast_to(np.arange(mine[-1]), mine), axis=-1) % 256
            )
            codes[own.name] = numbers.astype(own.element.dtype)
        elif own.element is UINT8:
            codes[own.name] = rng.integers(0, 256, mine).astype(np.uint8)
        else:
            codes[own.name] = rng.normal(size=mine).astype(np.float32).view(np.uint32)
    return QuantizedTensor(number_format=told, codes=codes).check()


@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.parametrize("name", STEPS)
def test_numbers_are_the_same_in_numpy_and_jax(name, stack):
    tensor = made(name, stack)
    numbers = tensor.dequantize()
    assert (numbers.shape, numbers.dtype) == ((*stack, ROWS, COLUMNS), np.float32)
    others = jax.jit(QuantizedTensor.dequantize)(tensor)
    np.testing.assert_allclose(numbers, np.asarray(others), rtol=2e-6, atol=2e-6)
    told = document.FORMAT.read(document.FORMAT.write(tensor.number_format))
    assert told == tensor.number_format


@pytest.mark.parametrize("name", [*plain_steps.DECODERS, *plain_steps.TRANSFORMS])
def test_a_plain_decoder_has_the_same_numbers(name):
    tensor, step = made(name), STEPS[name]
    codes, settings = tensor.codes, dict(step.settings)
    arrays = [own.numbers(codes[own.name]) for own in step.arrays]
    if name in DECODERS:
        numbers = plain_steps.DECODERS[name](settings, codes["code"], *arrays)
    else:
        plain = codes["code"].astype(np.float32)
        numbers = plain_steps.TRANSFORMS[name](settings, plain, *arrays)
    np.testing.assert_allclose(tensor.dequantize(), numbers, rtol=2e-6, atol=1e-5)


def test_every_step_is_tried():
    assert set(STEPS) == {*DECODERS, *TRANSFORMS}


@pytest.mark.parametrize("name", [name for name in STEPS if STEPS[name].arrays])
def test_arrays_of_another_weight_are_refused(name):
    tensor = made(name)
    if name in ("levels", "trellis", "outliers"):  # of any weight
        return
    codes = dict(tensor.codes, code=np.concatenate([tensor.codes["code"]] * 2, axis=0))
    codes["code"] = np.concatenate([codes["code"]] * 2, axis=1)
    with pytest.raises(CorruptError):
        replace(tensor, codes=codes).check()


@pytest.mark.parametrize("states", CHECKS)
def test_a_trellis_is_decoded_by_its_states(states):
    codes = np.random.default_rng(states).integers(96, 160, (3, 300)).astype(np.uint8)
    step = Step(name="trellis", settings=(("states", states),), arrays=(real("levels", 4),))
    levels = np.array([-3.5, -1.5, 0.5, 2.5], np.float32)  # of codes 126 to 129
    numbers = DECODERS["trellis"].decode(step, UINT8, codes, {"levels": levels})
    for row, told in zip(codes, numbers, strict=True):
        state = 0
        for code, number in zip(row.tolist(), told.tolist(), strict=True):
            level = 2 * (code - 128) + 0.5
            assert number == (-level if state & 1 else level)
            state = trellis(states).following[state, code & 1]


@pytest.mark.parametrize(("states", "least"), [(4, 9), (8, 10), (16, 11), (32, 13), (64, 14)])
def test_paths_that_part_and_meet_are_far_apart(states, least):
    """The free distance of Ungerboeck's codes, in squares of a step."""
    shape, odd = trellis(states), np.arange(states)[:, None] & 1
    subset = np.where(odd, -2 * np.arange(2) - 1, 2 * np.arange(2)) % 4  # of a state and a code
    apart = np.full((states, states), np.inf)  # of two paths, by the states that they are in
    apart[shape.following[:, 0], shape.following[:, 1]] = 4
    met = np.inf
    for _ in range(40):
        further = np.full_like(apart, np.inf)
        for one, other in itertools.product((0, 1), repeat=2):
            gap = (subset[:, None, one] - subset[None, :, other]) % 4
            total = apart + np.array([0, 1, 4, 1])[gap]
            places = shape.following[:, None, one], shape.following[None, :, other]
            np.minimum.at(further, places, total)
        met = min(met, np.diag(further).min())
        np.fill_diagonal(further, np.inf)
        apart = np.minimum(apart, further)
    assert met == least


def test_words_are_far_apart_and_the_ball_is_even():
    distance = (words()[:, None] != words()[None]).sum(axis=2)
    assert distance[~np.eye(16, dtype=bool)].min() == 4
    points = ball() - np.where(np.arange(1 << 16)[:, None] >> 15 & 1, -0.25, 0.25)
    assert len(np.unique(ball(), axis=0)) == 1 << 16
    assert (points.sum(axis=1) % 2 == 0).all()
    assert (np.abs(points) % 1 == 0.5).all()


@pytest.mark.parametrize("length", [1, 64, 96, 100, 768, 14 * 64, 11008, 172])
def test_rotations_are_orthogonal(length):
    block = largest_block(length)
    assert is_order(block)
    assert length % block == 0
    lines = np.random.default_rng(1).normal(size=(3, length)).astype(np.float32)
    turned = rotated(lines, block)
    np.testing.assert_allclose(rotated(turned, block, back=True), lines, atol=1e-5)
    np.testing.assert_allclose((turned**2).sum(axis=1), (lines**2).sum(axis=1), rtol=1e-5)
    assert (jax.jit(partial(rotated, block=block))(lines) == turned).all()


@pytest.mark.parametrize("order", [12, 20, 28, 36, 44, 60, 76, 84, 108])
def test_bases_are_hadamard_matrices(order):
    matrix = base(order)
    assert (np.abs(matrix) == 1).all()
    assert (matrix @ matrix.T == order * np.eye(order)).all()
