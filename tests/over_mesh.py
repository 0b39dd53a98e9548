"""What runs on virtual devices, or in processes of `jax.distributed`, for `test_mesh`.

A process is told of its devices before JAX starts: another one calls a function of this file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jentropy
from jentropy import jax_internals, models, modes
from jentropy.formats import QuantizedTensor, quantize
from jentropy.models import latent
from jentropy.models.calibration import calibrate
from jentropy.models.experts import Matrices, mixed
from jentropy.models.sharding import part
from jentropy.pallas_kernels import ShardedTensor, take_rows, targets
from jentropy.pallas_kernels.filling import side_by_side
from jentropy.pallas_kernels.variants import VARIANTS

from .quickly import compiled_quickly

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

IDS = np.arange(10, dtype=np.int32).reshape(2, 5)
SUMS = [("residual", None)]


def mesh_of(*shape: int, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    names = ("data", "model")[-len(shape) :]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def weight(name: str, shape: tuple[int, ...]) -> QuantizedTensor:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.02
    values.reshape(-1)[::97] *= 2.0**20  # escapes
    values.reshape(-1)[5:40] = -0.0
    number_format = VARIANTS[name].number_format
    codes = quantize(jnp.asarray(values), number_format)
    return QuantizedTensor(
        number_format=number_format, codes={key: np.asarray(code) for key, code in codes.items()}
    )


def over(mesh: Any, stored: QuantizedTensor, axis: int, size: int, **options: Any) -> ShardedTensor:
    """A weight, or a stack of two, whose parts are laid out one by one and put on the devices."""
    backend, layers = options.pop("backend", "reference"), options.pop("layers", ())
    holders = NamedSharding(mesh, PartitionSpec("model")).devices_indices_map(
        (mesh.shape["model"],)
    )
    parts = {
        device: jentropy.to_resident(part(stored, axis, (where.start or 0) * size, size), backend)
        for device, (where,) in holders.items()
    }
    return ShardedTensor(
        parts=side_by_side(parts, mesh, ("model",)),
        mesh=mesh,
        axes=("model",),
        split=axis,
        logical=stored.shape[len(layers) :],
        **options,
    )


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def close(a: Any, b: Any, within: float = 1e-5) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=within * float(np.abs(b).max()))


@jax.jit
def everything(w: Any, x: Any, ids: Any) -> tuple[jax.Array, ...]:
    """Numbers, rows and a product of a matrix."""
    taken = take_rows(w, ids, jnp.float32)
    return jentropy.decode(w), taken, jentropy.matmul(x, w, transpose_w=True)


@jax.jit
def grouped(w: Any, rows: Any, sizes: Any) -> jax.Array:
    return jentropy.grouped_matmul(rows, w, sizes, transpose_w=True)


@compiled_quickly()
def on_hopper() -> None:
    """Products by the kernels for Hopper, interpreted, each of two devices with its part."""
    few = replace(targets.GPUS["h200"], multiprocessors=1)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 256)), jnp.bfloat16)
    product = partial(jentropy.matmul, transpose_w=True, out_dtype=jnp.float32)
    with (
        jax_internals.gpu_interpreter_compiles_once(),
        mock.patch.object(targets, "current_gpu", return_value=few),
    ):
        for name, axis, shape in (("BF16", -1, (100, 256)), ("INT4 g32 zeros", -2, (200, 256))):
            stored = weight(name, shape)
            w = over(mesh_of(2), stored, axis, 128, backend="gpu")
            assert w.backend == "gpu"
            y = jax.jit(partial(product, interpret=True))(x, w)
            close(y, product(x, jentropy.to_resident(stored, "reference")))


def products() -> None:
    """What products over a mesh give, against those of one device."""
    rng = np.random.default_rng(1)
    x, rows = (rng.standard_normal((n, 320)).astype(np.float32) for n in (4, 10))
    ids = np.array([[0, 5], [199, 1000]], np.int32)
    sizes = np.array([2, 0, 5, 1, 0, 1], np.int32)
    for kind, names in (
        (AxisType.Auto, ("BF16", "NVFP4")),
        (AxisType.Explicit, ("INT4 g32 zeros",)),
    ):
        mesh = mesh_of(2, 3, kind=kind)
        for name in names:
            stored, experts = weight(name, (200, 320)), weight(name, (6, 72, 320))
            one = everything(jentropy.to_resident(stored, "reference"), x, ids)
            for axis, size in ((-2, 128), (-1, 128)):
                w = over(mesh, stored, axis, size, batch=("data",))
                assert w.shape == (200, 320)
                dense, taken, y = everything(w, x, ids)
                assert same_bits(dense, one[0]), name
                assert same_bits(taken, one[1]), name
                assert same_bits(y, one[2]) or axis == -1, name
                close(y, one[2])
            expected = grouped(jentropy.to_resident(experts, "reference"), rows, sizes)
            for axis, size in ((-3, 2), (-2, 32), (-1, 128)):
                y = grouped(over(mesh, experts, axis, size), rows, sizes)
                assert (np.asarray(y) == np.asarray(expected)).all() or axis == -1, (name, axis)
                close(y, expected)
    of_experts(mesh)
    in_a_loop()
    on_hopper()


def of_experts(mesh: jax.sharding.Mesh) -> None:
    """What experts make of tokens, each device its own: the bits of one device, added once."""
    rng = np.random.default_rng(2)
    stored = [weight("BF16", shape) for shape in ((6, 64, 96), (6, 64, 96), (6, 96, 64))]
    x, scores = (jnp.asarray(rng.standard_normal(n), jnp.float32) for n in ((5, 96), (5, 2)))
    chosen = jnp.asarray([[0, 5], [2, 3], [3, 1], [5, 2], [4, 0]], jnp.int32)
    biases = [jnp.asarray(rng.standard_normal((6, n)), jnp.float32) for n in (64, 64, 96)]

    @jax.jit
    @modes.standard
    def run(x: jax.Array, weights: Any) -> jax.Array:
        parts = (Matrices(*pair) for pair in zip(weights, biases, strict=True))
        return mixed(x, scores, chosen, *parts, gated=lambda gate, up: jnp.tanh(gate) * up)

    one = run(x, [jentropy.to_resident(w, "reference") for w in stored])
    spread = [over(mesh, w, -3, 2) for w in stored]
    assert same_bits(run(x, spread), one)
    assert str(jax.make_jaxpr(run)(x, spread)).count("psum") == 1


@compiled_quickly()
def in_a_loop() -> None:
    """Derivatives, and a stack of layers in a scan, by TPU's kernels too."""
    mesh = mesh_of(2)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 256)), jnp.float32)
    stored = weight("FP8 128x128", (2, 256, 256))
    run = jax.jit(jax.value_and_grad(through), static_argnames="interpret")
    expected = run(x, jentropy.to_resident(stored, "reference"), interpret=False)
    for backend, axis in (("reference", -2), ("tpu", -2), ("tpu", -1)):
        stack = over(mesh, stored, axis, 128, backend=backend, layers=(2,))
        found = run(x, stack, interpret="hlo" if backend == "tpu" else False)
        for one, other in zip(found, expected, strict=True):
            close(one, other)


def through(x: jax.Array, w: Any, interpret: Any) -> jax.Array:
    def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        options = {"transpose_w": True, "precision": "highest", "interpret": interpret}
        return jnp.tanh(jentropy.matmul(x, w.layer(i), **options) * 1e-4), None

    return jax.lax.scan(layer, x, jnp.arange(2))[0].sum()


@compiled_quickly()
def generation(compressed: str, blocks: str, latents: str, dense: str) -> None:
    """Models over meshes that divide what they have, and that do not."""
    latent.MADE_AT_ONCE = 0  # keys and values are made of latents block by block
    of_latents = np.tile(np.arange(30, dtype=np.int32), (2, 1))  # too many to be absorbed
    for path, mesh, rules, ids in (
        (compressed, mesh_of(8), (), IDS),
        (blocks, mesh_of(2, 3, kind=AxisType.Explicit), (), IDS),
        (latents, mesh_of(2, 2), (), of_latents),
        (dense, mesh_of(2), SUMS, IDS),
    ):
        one = models.load(path, compute_dtype=jnp.float32)
        model = models.load(path, mesh=mesh, rules=rules, compute_dtype=jnp.float32)
        logits = one(ids)
        if rules:
            close(model(ids), logits)
        else:
            assert same_bits(model(ids), logits), (path, mesh)
        if path == compressed:
            text = models.generate(one, IDS, max_new_tokens=3)
            assert same_bits(models.generate(model, IDS, max_new_tokens=3), text)
            sums, others = (calibrate(each, IDS, batch=2) for each in (one, model))
            for own, other in zip(jax.tree.leaves(sums), jax.tree.leaves(others), strict=True):
                close(np.asarray(other), np.asarray(own), 1e-6)
        count, whole = mesh.shape["model"], bytes_of(one)
        held = max(of_device(model, device) for device in mesh.devices.flat)
        assert whole / count <= held < 1.6 * whole / count + 4096, (path, held)


def bytes_of(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def of_device(model: Any, device: jax.Device) -> int:
    """Bytes of a model's weights on a device."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(model))
        for shard in leaf.addressable_shards
        if shard.device == device
    )


@compiled_quickly()
def distributed(path: str, address: str, processes: int, number: int) -> None:
    """One of several processes, which compiles as the test does that compares."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, number)
    model = models.load(path, mesh=mesh_of(jax.device_count()), compute_dtype=jnp.float32)
    held = of_device(model, *jax.local_devices())
    print(json.dumps([held, np.asarray(model(IDS)).view(np.uint32).tolist()]))
