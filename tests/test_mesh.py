"""Weights over a mesh: the bits of one device, and on each device its part only.

Virtual devices are told of before JAX starts, and processes of `jax.distributed` are several: what
runs on them is a function of this file that another process calls.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jentropy
from jentropy import formats, models
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor, quantize
from jentropy.models.sharding import Sharding, part
from jentropy.pallas_kernels import ShardedTensor
from jentropy.pallas_kernels.variants import VARIANTS

from .conftest import ROOT, same_bits

IDS = np.arange(10, dtype=np.int32).reshape(2, 5)
SUMS = [("residual", None)]
FORMATS = ["BF16", "FP8 128x128", "INT4 g32 zeros", "MXFP4", "NVFP4"]


def started(devices: int, call: str, *arguments: str) -> subprocess.Popen[str]:
    """A process with so many devices that calls a function of this file."""
    name, *_ = call.partition("(")
    program = f"from tests.test_mesh import {name}; {call}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*processes: subprocess.Popen[str]) -> list[str]:
    """What they print, if all end well."""
    ends = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [out for out, _ in ends]


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


def spread(weight: QuantizedTensor, mesh: Any, axis: int, **options: Any) -> ShardedTensor:
    """A weight whose parts are laid out one by one and put together over a mesh."""
    count, length = mesh.shape["model"], weight.shape[axis]
    size = -(-length // count // 128) * 128 if axis > -3 else length // count
    parts = [
        jentropy.to_resident(part(weight, axis, i * size, size), "reference") for i in range(count)
    ]
    if isinstance(parts[0], jentropy.ResidentTensor):
        from jentropy.pallas_kernels.filling import put

        stacked: Any = None
        for i, one in enumerate(parts):
            stacked = put(stacked, (count,), (i,), one)
    else:
        stacked = jnp.stack(parts)
    place = NamedSharding(mesh, PartitionSpec("model"))
    return ShardedTensor(
        parts=jax.device_put(stacked, place),
        mesh=mesh,
        axes=("model",),
        split=axis,
        logical=weight.shape,
        **options,
    )


def products() -> None:
    """What products over a mesh give, against those of one device."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 320)).astype(np.float32)
    ids = np.array([[0, 5], [199, 1000]], np.int32)
    sizes = np.array([2, 0, 5, 1, 0, 1], np.int32)
    rows = rng.standard_normal((10, 320)).astype(np.float32)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(2, 3, kind=kind)
        for name in FORMATS if kind == AxisType.Auto else FORMATS[:2]:
            stored, experts = weight(name, (200, 320)), weight(name, (6, 72, 320))
            one = jentropy.to_resident(stored, "reference")
            for axis in (-2, -1):
                w = spread(stored, mesh, axis, batch=("data",))
                assert w.shape == (200, 320)
                assert same_bits(jentropy.decode(w), jentropy.decode(one)), name
                taken = jentropy.pallas_kernels.take_rows(w, ids, jnp.float32)
                alone = jentropy.pallas_kernels.take_rows(one, ids, jnp.float32)
                assert same_bits(taken, alone), name
                run = jax.jit(jentropy.matmul, static_argnames="transpose_w")
                y = run(x, w, transpose_w=True)
                expected = run(x, one, transpose_w=True)
                if axis == -2:
                    assert same_bits(y, expected), name
                np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
            alone = jentropy.to_resident(experts, "reference")
            expected = jentropy.grouped_matmul(rows, alone, sizes, transpose_w=True)
            for axis in (-3, -2, -1):
                w = spread(experts, mesh, axis)
                y = jentropy.grouped_matmul(rows, w, sizes, transpose_w=True)
                if axis != -1:
                    np.testing.assert_array_equal(y, expected)
                np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
    in_a_loop()


def in_a_loop() -> None:
    """Derivatives, and a stack of layers in a scan, by TPU's kernels too."""
    mesh = mesh_of(2)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 256)), jnp.float32)
    stored = weight("BF16", (2, 256, 256))
    for backend, options in (("reference", {}), ("tpu", {"interpret": "hlo"})):
        whole = jentropy.to_resident(stored, backend)
        for axis in (-2, -1):
            halves = [jentropy.to_resident(part(stored, axis, i, 128), backend) for i in (0, 128)]
            stack = joined(halves, mesh, axis)

            run = partial(through, **options)
            y, expected = jax.jit(run)(x, stack), jax.jit(run)(x, whole)
            np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
            of = jax.jit(jax.grad(lambda x, w, run=run: run(x, w).sum()))
            back, right = of(x, stack), of(x, whole)
            np.testing.assert_allclose(back, right, atol=1e-5 * np.abs(right).max())


def through(x: jax.Array, w: Any, **options: Any) -> jax.Array:
    def layer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        y = jentropy.matmul(x, w.layer(i), transpose_w=True, precision="highest", **options)
        return jnp.tanh(y * 1e-4), None

    return jax.lax.scan(layer, x, jnp.arange(2))[0]


def joined(halves: list[jentropy.ResidentTensor], mesh: Any, axis: int) -> ShardedTensor:
    """Stacks of layers, one on each device."""
    from jentropy.pallas_kernels.filling import put

    stacked: Any = None
    for number, half in enumerate(halves):
        for layer in range(2):
            stacked = put(stacked, (2, 2), (layer, number), half[layer].alone())
    place = NamedSharding(mesh, PartitionSpec(None, "model"))
    return ShardedTensor(
        parts=jax.device_put(stacked, place),
        mesh=mesh,
        axes=("model",),
        split=axis,
        logical=(256, 256),
    )


def test_products_over_a_mesh():
    finished(started(6, "products()"))


def generation(paths: list[str]) -> None:
    """Models over meshes that divide what they have, and that do not."""
    for path in paths:
        one = models.load(path, compute_dtype=jnp.float32)
        logits, text = one(IDS), models.generate(one, IDS, max_new_tokens=3)
        compressed = bytes_of(one)
        meshes = [(mesh_of(8), ()), (mesh_of(2, 3, kind=AxisType.Explicit), ()), (mesh_of(2), SUMS)]
        for mesh, rules in meshes if path == paths[0] else meshes[1:2]:
            model = models.load(path, mesh=mesh, rules=rules, compute_dtype=jnp.float32)
            found = model(IDS)
            if rules:
                np.testing.assert_allclose(found, logits, atol=1e-5 * np.abs(logits).max())
            else:
                np.testing.assert_array_equal(np.asarray(found), np.asarray(logits), path)
            np.testing.assert_array_equal(models.generate(model, IDS, max_new_tokens=3), text)
            count = mesh.shape["model"]
            held = max(of_device(model, device) for device in mesh.devices.flat)
            assert compressed / count <= held < 1.3 * compressed / count + 4096, (path, held)


def bytes_of(model: Any) -> int:
    """Bytes of a model's weights."""
    from flax import nnx

    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def of_device(model: Any, device: jax.Device) -> int:
    """Bytes of a model's weights on a device."""
    from flax import nnx

    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(model))
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def test_generation_over_a_mesh(fixtures, packed):
    names = ("llama_bf16", "ct_fp8_block", "gptq_v1", "mo_nvfp4")
    paths = [*(str(packed[name]) for name in names), str(fixtures / "llama_bf16")]
    finished(started(8, f"generation({paths!r})"))


def distributed(path: str, address: str, processes: int, number: int) -> None:
    """One of several processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, number)
    model = models.load(path, mesh=mesh_of(jax.device_count()), compute_dtype=jnp.float32)
    held = of_device(model, *jax.local_devices())
    print(json.dumps([held, np.asarray(model(IDS)).view(np.uint32).tolist()]))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_a_part_each(processes, packed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = str(packed["llama_bf16"])
    outs = finished(
        *(
            started(1, f"distributed({path!r}, {address!r}, {processes}, {i})")
            for i in range(processes)
        )
    )
    one = models.load(path, compute_dtype=jnp.float32)
    expected, whole = np.asarray(one(IDS)).view(np.uint32).tolist(), bytes_of(one)
    for out in outs:
        held, logits = json.loads(out.splitlines()[-1])
        assert logits == expected
        assert held < 1.2 * whole / processes + 4096


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_parts_are_the_weight(name, axis):
    stored = weight(name, (3, 80, 192))
    size = {-1: 96, -2: 48, -3: 2}[axis]
    parts = [part(stored, axis, first, size) for first in range(0, stored.shape[axis], size)]
    assert all(one.check().shape[axis] == size for one in parts)
    together = np.concatenate([one.dequantize() for one in parts], axis)
    length = stored.shape[axis]
    np.testing.assert_array_equal(together.take(range(length), axis), stored.dequantize())
    assert not parts[-1].codes["code"].take(range(length % size or size, size), axis).any()


MATRIX = np.zeros((96, 64), np.uint16)
Q, DOWN, EXPERTS = (
    ("layers", 0, *path.split("."))
    for path in ("self_attn.q_proj.weight", "mlp.down_proj.weight", "mlp.experts.up_proj.weight")
)


def split(path: tuple, array: Any = MATRIX, rules: Any = (), **sizes: int) -> Any:
    mesh = AbstractMesh(tuple((sizes or {"model": 4}).values()), tuple(sizes or {"model": 4}))
    found = Sharding(mesh=mesh, rules=rules, kv_heads=8).of(path, array)
    return found and (found.axes, found.axis, found.count, found.size, found.gathered)


def test_rules_say_what_splits_a_weight():
    assert split(Q) == (("model",), -2, 4, 24, False)
    assert split(Q, model=16) == (("model",), -2, 16, 6, True)  # between heads of keys
    assert split(Q, model=5) == (("model",), -2, 5, 20, True)  # the last has 16
    assert split(Q, data=2) == ((), None, 1, 0, True)
    assert split(Q, data=2, x=2, y=3) == (("x", "y"), -2, 6, 16, True)
    assert split(Q, rules=[("heads", None)]) == ((), None, 1, 0, True)
    assert split(Q, rules=[("heads", None), ("embed", "model")]) == (("model",), -1, 4, 16, True)
    assert split(DOWN) == (("model",), -2, 4, 24, True)
    assert split(DOWN, rules=SUMS) == (("model",), -1, 4, 16, True)
    assert split(DOWN, rules=[*SUMS, ("mlp", None)]) == ((), None, 1, 0, True)
    stack = np.zeros((6, 96, 64), np.uint16)
    assert split(EXPERTS, stack, model=3) == (("model",), -3, 3, 2, True)
    assert split(EXPERTS, stack)[1:] == (-2, 4, 24, False)  # within each
    assert split(("norm", "weight"), np.zeros(96)) is None
    assert split(("layers", 0, "mlp", "experts", "up_proj", "bias")) is None
    for rules, message in (
        ([("head", "model")], r"rule of a mesh: expected batch, .*found 'head'"),
        ([("heads", "tensor")], r"rule of heads: expected axes of model, found 'tensor'"),
    ):
        with pytest.raises(InputError, match=message):
            split(Q, rules=rules)


def test_parts_are_cut_between_blocks():
    blocks = weight("FP8 128x128", (384, 256))
    assert split(Q, blocks) == (("model",), -2, 4, 96, False)  # blocks of 32
    assert split(DOWN, blocks, SUMS) == (("model",), -1, 4, 64, True)  # blocks of 64
    assert split(DOWN, blocks, SUMS, model=3) == (("model",), -1, 3, 128, True)
    assert split(DOWN, blocks, SUMS, model=16) == (("model",), -1, 16, 128, True)  # 16 are none
    scattered = formats.GROUP_INDEX
    act_order = QuantizedTensor(
        number_format=blocks.number_format, codes=blocks.codes | {scattered: np.zeros(256, int)}
    )
    assert split(DOWN, act_order, SUMS) == ((), None, 1, 0, True)


def test_only_a_part_of_a_checkpoint_is_read(packed, monkeypatch):
    checkpoint = jentropy.open_checkpoint(packed["llama_bf16"])
    name, other = "model.embed_tokens.weight", "model.norm.weight"
    whole = {tensor.name: codes["code"] for tensor, codes in checkpoint.read_all()}
    parts = dict.fromkeys(checkpoint.names()) | {name: (slice(64, 128), slice(None)), other: ()}
    found = {tensor.name: codes["code"] for tensor, codes in checkpoint.read_all(parts)}
    assert set(found) == {name, other}
    np.testing.assert_array_equal(found[name], whole[name][64:128])
    np.testing.assert_array_equal(found[other], whole[other])


def test_inside_of_shard_map_a_weight_over_a_mesh_says_so():
    mesh = mesh_of(1)
    w = spread(weight("BF16", (64, 128)), mesh, -2)
    run = jax.shard_map(
        lambda x: jentropy.matmul(x, w, transpose_w=True),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(UnsupportedError, match=r"over a mesh: .*outside of shard_map"):
        run(jnp.ones((2, 128)))
