"""Stacks of layers in a scan: read in place, on one device and over a mesh, by every backend."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jentropy
from jentropy.pallas_kernels.variants import VARIANTS, weight_of

LAYERS, WIDTH = 4, 256
CASES = [("reference", "BF16"), ("reference", "INT4 g32"), ("tpu", "BF16"), ("tpu", "MXFP8")]


def stack(backend: str, name: str) -> jentropy.ResidentTensor:
    rng = np.random.default_rng(0)
    dense = jnp.asarray(rng.standard_normal((LAYERS, WIDTH, WIDTH)) * 0.05, jnp.bfloat16)
    w = jentropy.to_resident(weight_of(VARIANTS[name].number_format, dense), backend)
    assert w.backend == backend
    return w


def inputs() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((4, WIDTH)), jnp.float32)


@partial(jax.jit, static_argnames="interpret")
def through(w: jentropy.ResidentTensor, x: jax.Array, *, interpret: str | bool) -> jax.Array:
    def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        options = {"transpose_w": True, "interpret": interpret, "precision": "highest"}
        return jentropy.matmul(x, w[i], **options), None

    return jax.lax.scan(layer, x, jnp.arange(LAYERS))[0]


def copies_of_stack(program: str, w: jentropy.ResidentTensor) -> list[str]:
    """What a compiled program makes in the shape of the largest array, which it is given."""
    shape = ",".join(map(str, max(w.arrays.values(), key=lambda array: array.nbytes).shape))
    made = rf"= \w+\[{shape}\]\S* (?!parameter|get-tuple-element)"
    return [line for line in program.splitlines() if re.search(made, line)]


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_layers_are_scanned_in_place(backend, name):
    w, x = stack(backend, name), inputs()
    options = {"interpret": "hlo" if backend == "tpu" else False}
    expected = x
    for dense in jentropy.decode(w, jnp.float32, **options):
        expected = jnp.dot(expected, dense.T, precision="highest")
    y = through(w, x, **options)
    np.testing.assert_allclose(y, expected, atol=3e-6 * float(jnp.abs(expected).max()))
    assert not copies_of_stack(through.lower(w, x, **options).compile().as_text(), w)


def on_two_devices(backend: str, name: str) -> None:
    """The same over two devices: x split by rows, every matrix by its rows where they divide."""
    w, x = stack(backend, name), inputs()
    options = {"interpret": "hlo" if backend == "tpu" else False}
    y = np.asarray(through(w, x, **options))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))

        def place(array: jax.Array, mesh: jax.sharding.Mesh = mesh) -> jax.Array:
            divides = array.ndim > 1 and array.shape[1] % 2 == 0
            spec = PartitionSpec(None, "d") if divides else PartitionSpec()
            return jax.device_put(array, NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
            again = through(jax.tree.map(place, w), split, **options)
        np.testing.assert_allclose(again, y, atol=1e-6 * np.abs(y).max())
        assert again.sharding.spec[0] == "d"


@pytest.mark.parametrize(("backend", "name"), CASES[1:3])
def test_layers_are_scanned_over_a_mesh(backend, name):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    program = f"from tests.test_stacks import on_two_devices; on_two_devices({backend!r}, {name!r})"
    subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "XLA_FLAGS": flags}, check=True
    )
