"""Weights over a mesh: the bits of one device, and on each device its part only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import jentropy
from jentropy import formats, models
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor
from jentropy.models.sharding import Sharding, part

from .conftest import ROOT
from .over_mesh import IDS, SUMS, bytes_of, mesh_of, over, same_bits, weight

FORMATS = ["BF16", "FP8 128x128", "INT4 g32 zeros", "MXFP4", "NVFP4"]


def started(devices: int, call: str) -> subprocess.Popen[str]:
    """A process with so many devices that calls a function of `over_mesh`."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests import over_mesh; over_mesh.{call}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*processes: subprocess.Popen[str]) -> list[str]:
    """What they print, if all end well."""
    ends = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [out for out, _ in ends]


def test_products_over_a_mesh():
    finished(started(6, "products()"))


def test_generation_over_a_mesh(fixtures, packed):
    latents = fixtures / "models" / "deepseek_v3"
    paths = packed["llama_bf16"], packed["ct_fp8_block"], latents, fixtures / "llama_bf16"
    finished(started(8, f"generation{tuple(map(str, paths))}"))


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_a_part_each(processes, packed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = str(packed["llama_bf16"])
    calls = (f"distributed({path!r}, {address!r}, {processes}, {i})" for i in range(processes))
    outs = finished(*[started(1, call) for call in calls])
    one = models.load(path, compute_dtype=jnp.float32)
    expected, whole = np.asarray(one(IDS)), bytes_of(one)
    for out in outs:
        held, bits = json.loads(out.splitlines()[-1])
        logits = np.array(bits, np.uint32).view(np.float32)
        assert same_bits(logits, expected)
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
    assert split(DOWN, rules=SUMS) == (("model",), -1, 4, 16, False)
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
    assert split(DOWN, blocks, SUMS) == (("model",), -1, 4, 64, False)  # blocks of 64
    assert split(DOWN, blocks, SUMS, model=3) == (("model",), -1, 3, 96, True)
    assert split(DOWN, blocks, SUMS, model=16) == (("model",), -1, 16, 32, True)  # not 16
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
    w = over(mesh, weight("BF16", (64, 128)), -2, 64)
    run = jax.shard_map(
        lambda x: jentropy.matmul(x, w, transpose_w=True),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(UnsupportedError, match=r"over a mesh: .*outside of shard_map"):
        run(jnp.ones((2, 128)))
