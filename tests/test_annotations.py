"""Annotations: all of them evaluate, and the suite holds every call to them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jentropy import errors, formats
from jentropy.models import rope
from jentropy.pallas_kernels import tiles

from . import checking
from .test_architecture import CONFIG, MODULES


def annotations(path: Path) -> list[ast.expr]:
    """Of every function and variable of a module, those inside of others too."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
    return [annotation for annotation in found if annotation is not None]


@pytest.mark.parametrize("name", MODULES)
def test_annotations_evaluate(name):
    module, path = importlib.import_module(name), MODULES[name]
    for annotation in annotations(path):
        value = eval(compile(ast.Expression(annotation), str(path), "eval"), vars(module))
        assert not isinstance(value, str), f"{path.name}:{annotation.lineno}: {value!r} is a string"


def test_annotations_are_found():
    source = MODULES["jentropy.errors"]
    assert "found: object" in source.read_text()
    assert len(annotations(source)) > 10


def test_calls_are_checked():
    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        errors.InputError(3)
    with pytest.raises(jaxtyping.TypeCheckError):
        formats.quantize(jnp.ones(64, jnp.float32), "NVFP4")
    with pytest.raises(jaxtyping.TypeCheckError, match="time"):  # of one length
        rope.rotate(jnp.ones((1, 2, 1, 4)), jnp.arange(3), jnp.ones(2))


def test_annotations_with_axes_are_told_from_others():
    assert checking.has_shapes(rope.rotate)
    assert checking.has_shapes(tiles.places)  # NumPy's
    assert not checking.has_shapes(errors.InputError.at)


@pytest.mark.usefixtures("unchecked")
def test_calls_can_be_let_through():
    with pytest.raises(TypeError, match="not subscriptable"):
        errors.InputError(3)


def test_ranks_and_dtypes_are_strict():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 2)) + jnp.ones(2)


def test_the_package_needs_no_type_checker():
    assert not any("beartype" in need for need in CONFIG["project"]["dependencies"])
    assert any("beartype" in need for need in CONFIG["project"]["optional-dependencies"]["test"])
    for path in MODULES.values():
        assert "beartype" not in path.read_text(), path
