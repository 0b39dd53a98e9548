"""Attention by library kernels: against plain sums, where they are chosen, what they take."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jentropy import jax_internals, modes
from jentropy.models import attending, attending_kernels, cudnn
from jentropy.models.attending import Scoring, at_once, attend
from jentropy.models.attending_kernels import Case, kernels_for
from jentropy.models.splash import splash

from .compilers import EVERYTHING, needs, outputs

pytestmark = pytest.mark.usefixtures("compiled_quickly")

RNG = np.random.default_rng(0)
# Queries, slots, widths of keys and values; positions of the first query and the first slot by
# row; window, soft cap, sinks.
SPLASHED = {
    "chunks of a cache": (200, 640, 64, 128, (100, 391), (0, 0), None, None, False),
    "capped, with sinks": (128, 256, 64, 64, (0, 128), (0, 0), None, 2.0, True),
    # A ring of 128 slots before the queries, of which one row has filled none and one some.
    "windows": (256, 384, 64, 64, (0, 100), (-128, -28), 128, None, False),
    "windows with sinks": (128, 256, 128, 64, (300, 7), (172, -121), 50, 3.0, True),
}


def arrays(queries, slots, width, value_width, starts, firsts, window, cap, sinks):
    batch, kv_heads, group = len(starts), 2, 2
    q, k, v = (
        jnp.asarray(RNG.standard_normal((batch, kv_heads, *shape)), jnp.bfloat16)
        for shape in ((group, queries, width), (slots, width), (slots, value_width))
    )
    positions, places = (
        jnp.asarray(first, jnp.int32)[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
        for first, count in ((starts, queries), (firsts, slots))
    )
    window = None if window is None else jnp.int32(window)
    own = jnp.asarray(RNG.standard_normal((kv_heads, group)), jnp.float32) if sinks else None
    return (q, k, v, positions, places, window, own), Scoring(width**-0.5, cap)


@pytest.mark.parametrize("case", SPLASHED)
def test_splash_is_the_plain_sum(case):
    """In interpret mode; weights and scaled queries are rounded otherwise, to bfloat16."""
    given, scoring = arrays(*SPLASHED[case])
    with modes.standard_modes():
        found = jax.jit(partial(splash, **scoring._asdict(), interpret=True))(*given)
        wide = [each.astype(jnp.float32) for each in given[:3]]
        expected = at_once(*wide, *given[3:], scoring)
        moved = at_once(*wide, given[3] - 1, *given[4:], scoring)
    assert found.dtype == jnp.bfloat16
    error = jnp.abs(found.astype(jnp.float32) - expected)
    assert error.max() < 0.01 * jnp.abs(expected).max()
    assert jnp.abs(moved - expected).max() > 0.05 * jnp.abs(expected).max()


CASE = {
    "width": 128,
    "value_width": 128,
    "queries": 512,
    "slots": 4096,
    "batch": 1,
    "in_order": True,
    "windowed": False,
    "capped": False,
    "sinks": False,
    "dtypes": frozenset({"bfloat16"}),
}


@pytest.fixture
def gpu_is_there(monkeypatch):
    """What JAX asks of a GPU while it traces, as an H200 with cuDNN answers."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    cudnn_version = SimpleNamespace(cudnn_get_version=lambda: 91300)
    monkeypatch.setattr(fused, "cuda_versions", cudnn_version)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    row = attending_kernels.KERNELS["cuda"]
    assert row.is_there is cudnn.is_there
    assert jax_internals.has_cudnn()
    there = {name: getattr(row, name) for name in row.__dataclass_fields__}
    present = attending_kernels.Kernel(**{**there, "is_there": lambda: True})
    monkeypatch.setattr(
        attending_kernels, "KERNELS", {**attending_kernels.KERNELS, "cuda": present}
    )


@pytest.mark.parametrize(
    ("changes", "platforms"),
    [
        ({}, {"tpu", "cuda"}),
        ({"dtypes": frozenset({"float32"})}, set()),
        ({"dtypes": frozenset({"float16"})}, {"cuda"}),
        ({"dtypes": frozenset({"bfloat16", "float32"})}, set()),
        ({"capped": True}, {"tpu"}),
        ({"sinks": True}, {"tpu"}),
        ({"windowed": True}, {"tpu", "cuda"}),
        ({"windowed": True, "slots": 1 << 16}, {"cuda"}),
        ({"in_order": False}, {"cuda"}),
        ({"queries": 64}, {"cuda"}),
        ({"width": 192}, {"tpu"}),
        ({"width": 80, "value_width": 80}, {"cuda"}),
        ({"queries": 1 << 15, "slots": 1 << 15}, {"tpu"}),
        ({"slots": 1 << 18}, set()),
    ],
)
@pytest.mark.usefixtures("gpu_is_there")
def test_which_kernel_covers_what(changes, platforms):
    assert set(kernels_for(Case(**{**CASE, **changes}))) == platforms


def lowered(platform: str, dtype=jnp.bfloat16, **options) -> str:
    """The program of 256 queries at position 512 of a cache."""
    shapes = (1, 4, 256, 64), (1, 2, 1024, 64), (1, 2, 1024, 64)
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    told = {"positions": 512 + jnp.arange(256), "slots": jnp.arange(1024), "in_order": True}
    run = modes.standard(partial(attend, scale=0.1, **told, **options))
    traced = jax.jit(run).trace(*given)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture
def by_blocks(monkeypatch):
    monkeypatch.setattr(attending, "AT_ONCE", 0)


@pytest.mark.usefixtures("by_blocks", "gpu_is_there")
def test_the_platform_that_is_lowered_for_chooses(monkeypatch):
    calls = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmhaScaleBiasSoftmax"}
    for platform in ("tpu", "cuda", "cpu"):
        text = lowered(platform)
        assert [name in text for name in calls.values()] == [one == platform for one in calls]
    assert "tpu_custom_call" not in lowered("tpu", dtype=jnp.float32)
    mesh = jax.sharding.AbstractMesh((2,), ("model",), (jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        assert "tpu_custom_call" not in lowered("tpu")
    monkeypatch.setenv(attending_kernels.OFF, "blockwise")
    assert "tpu_custom_call" not in lowered("tpu")


@pytest.mark.usefixtures("by_blocks")
def test_derivatives_are_those_of_the_blocks(monkeypatch):
    """In both modes, of a program that has a kernel for another platform."""
    q, k, v = (jnp.asarray(RNG.standard_normal((1, 1, 128, 64)), jnp.bfloat16) for _ in range(3))
    told = {"positions": jnp.arange(128), "slots": jnp.arange(128), "in_order": True}

    @modes.standard
    def loss(q, k, v, sinks):
        mixed = attend(q, k, v, scale=0.1, sinks=sinks, window=jnp.int32(50), **told)
        return jnp.sin(3 * mixed.astype(jnp.float32)).sum()

    given = q, k, v, jnp.zeros(1)
    assert "platform_index" in str(jax.make_jaxpr(loss)(*given))
    both = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*given)
    along = jax.jit(lambda *given: jax.jvp(loss, given, given)[1])(*given)
    monkeypatch.setenv(attending_kernels.OFF, "blockwise")
    plain = modes.standard(lambda *given: loss(*given))
    for one, expected in zip(both, jax.jit(jax.grad(plain, (0, 1, 2, 3)))(*given), strict=True):
        np.testing.assert_array_equal(one, expected)
    np.testing.assert_allclose(
        along, jax.jit(lambda *g: jax.jvp(plain, g, g)[1])(*given), rtol=1e-5
    )


# One layer of Llama-3.2-1B and 8,192 tokens; of Gemma 2's and gpt-oss' kind windows, caps, sinks.
LAYERS = {
    "llama": {},
    "gemma": {"attention_soft_cap": 50.0, "windows": (1024,), "head_dim": 256, "num_heads": 8},
    "gpt-oss": {"attention_sinks": True, "windows": (128,)},
}
COMPILES = """
import json, sys
from jentropy.pallas_kernels.profiling import compiling
target, changes = sys.argv[1], json.loads(sys.argv[2])
compiling.prepare(target)
from tests.test_attending import layer_of_llama
layer, arguments = layer_of_llama(**changes)
compiled = compiling.compile_for(target, layer, *arguments)
text = compiled.as_text()
print(json.dumps([compiled.memory_analysis().temp_size_in_bytes, text.count("tpu_custom_call")]))
"""


@needs("v5e")
@pytest.mark.parametrize("target", ["v5e", "v6e"] if EVERYTHING else ["v5e"])
@pytest.mark.parametrize("name", LAYERS if EVERYTHING else ["llama"])
def test_the_compiler_takes_a_layer_with_its_kernel(name, target):
    changes = json.dumps(LAYERS[name])
    ((temporaries, calls),) = outputs(("-c", COMPILES, target, changes))
    assert calls >= 1
    assert temporaries < 300e6
