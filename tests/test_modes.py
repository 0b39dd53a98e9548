"""Everything works, and gives the same bits, whatever modes of JAX the caller has switched on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jentropy
from jentropy import formats, models
from jentropy.errors import InputError, UnsupportedError
from jentropy.formats import QuantizedTensor
from jentropy.pallas_kernels import take_rows

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Set for all threads, as programs do at their start.
SWITCHES: dict[str, dict[str, Any]] = {
    "strict": {"jax_numpy_rank_promotion": "raise", "jax_numpy_dtype_promotion": "strict"},
    "guard": {"jax_transfer_guard": "disallow"},
    "x64": {"jax_enable_x64": True},
    "no jit": {"jax_disable_jit": True},
    "mesh": {},
}
FORMATS = {
    "BF16": formats.FORMATS["BF16"],
    "INT4": formats.ASYMMETRIC_INT4,
}


@contextmanager
def switched(mode: str) -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in SWITCHES[mode]}
    mesh = jax.make_mesh((1,), ("x",)) if mode == "mesh" else None
    try:
        for name, value in SWITCHES[mode].items():
            jax.config.update(name, value)
        guard = "disallow" if mode == "strict" else None
        with jax.set_mesh(mesh), jax.transfer_guard(guard) if guard else nullcontext():
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(params=SWITCHES)
def mode(request) -> Iterator[str]:
    with switched(request.param):
        yield request.param


def numbers(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(shape) * 0.02
    values[3, 5:9] = [-0.0, 3e20, np.nan, np.inf]  # escapes of all kinds
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)


WEIGHT = numbers((200, 192), ml_dtypes.bfloat16)
TREE = {
    "bf16": WEIGHT,
    "f16": numbers((64, 40), np.float16),
    "f32": numbers((64, 40), np.float32),
    "f8": numbers((64, 40), ml_dtypes.float8_e5m2),
    "i32": np.arange(3000, dtype=np.int32),
}


def bits(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(jax.device_get(leaf)).tobytes(), tree)


PACKED = bits(jentropy.compress(TREE))


def test_archives(mode, tmp_path):
    packed = jentropy.compress(TREE)
    assert bits(packed) == PACKED
    assert bits(jentropy.decompress(packed)) == bits(TREE)
    on_device = jax.device_put(TREE)
    again = jentropy.decompress(jentropy.compress(on_device))
    assert bits(again) == bits(TREE)
    assert isinstance(again["bf16"], jax.Array)
    jentropy.save(tmp_path / "c", packed)
    assert bits(jentropy.decompress(jentropy.load(tmp_path / "c"))) == bits(TREE)
    place = NamedSharding(jax.make_mesh((1,), ("x",)), P("x"))
    spread = jentropy.decompress(jentropy.load(tmp_path / "c", sharding=place))
    assert bits(spread) == bits(TREE)
    assert all(leaf.sharding == place for leaf in jax.tree.leaves(spread))
    assert jax.tree.leaves(bits(jentropy.compress(spread))) == jax.tree.leaves(PACKED)
    jentropy.verify(tmp_path / "c")
    report = jentropy.analyze(tmp_path / "c").to_json()
    assert report["formats"] == jentropy.analyze(spread).to_json()["formats"]
    checkpoint = jentropy.open_checkpoint(tmp_path / "c")
    assert bits(checkpoint.tensor("bf16").dequantize(np.float32)) == bits(WEIGHT.astype(np.float32))


def weight(name: str) -> Any:
    values = jax.device_put(numbers((200, 192), np.float32))
    if not FORMATS[name].parameters:
        return values.astype(jnp.bfloat16)
    codes = jentropy.quantize(values, FORMATS[name])
    return QuantizedTensor(number_format=FORMATS[name], codes=codes)


def products(name: str) -> list[bytes]:
    resident = jentropy.to_resident(weight(name), "reference")
    ids = jax.device_put(np.array([3, 199, 0], np.int32))
    x = jax.device_put(numbers((8, 192), np.float32)[4:])

    def loss(x: jax.Array) -> jax.Array:
        y = jentropy.matmul(x, resident, transpose_w=True)
        return jnp.nansum(y)

    mapped = jax.ShapeDtypeStruct((2, *x.shape), jnp.bfloat16)
    jax.eval_shape(jax.grad(loss), x)  # promotions are refused while tracing
    jax.eval_shape(jax.vmap(lambda x: jentropy.matmul(x, resident, transpose_w=True)), mapped)
    y = jentropy.matmul(x, resident, transpose_w=True)
    return bits([jentropy.decode(resident), take_rows(resident, ids, jnp.float32), y])


@pytest.fixture(scope="module")
def plain() -> dict[str, list[bytes]]:
    return {name: products(name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_products(mode, name, plain):
    assert products(name) == plain[name]


def of_tpus(name: str) -> list[bytes]:
    resident = jentropy.to_resident(weight(name), "tpu")
    x = jax.device_put(numbers((8, 192), np.float32)[4:]).astype(jnp.bfloat16)
    y = jentropy.matmul(x, resident, transpose_w=True, out_dtype=jnp.float32, interpret=True)
    ids = jax.device_put(np.array([3, 199, 0], np.int32))
    return bits([y, take_rows(resident, ids, jnp.float32)])


@pytest.fixture(scope="module")
def plain_of_tpus() -> list[bytes]:
    return of_tpus("BF16")


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "guard"])
def test_products_of_tpus(switch, plain_of_tpus):
    # JAX's interpreter calls back in threads of its own, which a guard of the process holds too.
    with switched(switch):
        assert of_tpus("BF16") == plain_of_tpus


def test_decodes_of_tpus_with_wide_integers():
    resident = jentropy.to_resident(weight("BF16"), "tpu")
    with switched("x64"):
        found = jentropy.decode(resident, interpret=True)
    assert bits(found) == bits(weight("BF16"))


@pytest.fixture(scope="module")
def archived(fixtures, tmp_path_factory):
    target = tmp_path_factory.mktemp("modes") / "model"
    jentropy.compress_checkpoint(fixtures / "llama_bf16", target)
    return target


def written(path: Any, *, logits: bool = False) -> bytes:
    ids = jax.device_put(np.array([[5, 6, 7]], np.int32))
    model = models.load(path)
    if logits:
        found = jax.eval_shape(lambda ids: model(ids), ids)
        assert found.shape == (1, 3, model.config.vocab_size)
    return bits(models.generate(model, ids, max_new_tokens=3, temperature=0.5))


@pytest.fixture(scope="module")
def plain_text(archived) -> bytes:
    return written(archived)


@pytest.mark.parametrize("switch", [name for name in SWITCHES if name != "mesh"])  # see below
def test_models(switch, archived, plain_text):
    with switched(switch):
        assert written(archived, logits=switch == "strict") == plain_text


def test_a_search_for_nan_does_not_find_those_of_weights():
    values = WEIGHT.astype(np.float32)
    plain = jentropy.quantize(values, formats.FP8_BLOCK)
    given = jax.device_put(WEIGHT)
    with jax.debug_nans(True), jax.debug_infs(True):
        packed = jentropy.compress(given)
        assert bits(jentropy.decompress(packed)) == bits(WEIGHT)
        jentropy.to_resident(packed, "reference")
        assert jentropy.analyze({"w": packed}).formats["BF16"].entropy_bits > 1
        assert bits(jentropy.quantize(values, formats.FP8_BLOCK)) == bits(plain)


@pytest.mark.parametrize("how", [jax.jit, jax.vmap, lambda f: lambda x: jax.eval_shape(f, x)])
def test_a_trace_has_no_numbers_to_archive(how, tmp_path):
    packed = jentropy.compress(np.ones((4, 4), np.float32))
    payload = jax.numpy.asarray(packed.payload[0])[None]

    def of(piece):
        if piece.ndim > 1:
            piece = piece[0]
        return dataclasses.replace(packed, payload=(piece,))

    for call in (
        lambda x: jentropy.compress({"w": x}),
        lambda x: jentropy.to_resident({"w": x}),
        lambda x: jentropy.save(tmp_path / "x", {"w": x}),
        lambda x: jentropy.save(tmp_path / "x", {"w": of(x)}),
        lambda x: jentropy.decompress_slice(of(x), 0, "w"),
    ):
        with pytest.raises(UnsupportedError, match=r"'w': numbers: .* found a trace"):
            how(call)(payload)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_multiplied_or_quantized_says_so():
    x, w = np.ones((2, 8), np.float32), jnp.ones((8, 8), jnp.bfloat16)
    abstract = jentropy.to_resident(jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), "reference")
    with pytest.raises(
        InputError, match="x: expected an array of floating-point numbers, found list"
    ):
        jentropy.matmul(x.tolist(), w)
    with pytest.raises(InputError, match="expected one with data"):
        jentropy.matmul(x, abstract)
    with pytest.raises(InputError, match=r"precision: .*'best'"):
        jentropy.matmul(x, w, precision="best")
    with pytest.raises(InputError, match=r"format: expected a formats\.Format, found 'MXFP4'"):
        jentropy.quantize(x, "MXFP4")
    with pytest.raises(UnsupportedError, match="found ShapeDtypeStruct"):
        jentropy.quantize(jax.ShapeDtypeStruct((8, 8), jnp.float32), formats.MXFP4)
    assert jentropy.to_resident({"step": 3}, "reference")["step"].dtype == jnp.int32


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_activations_of_eight_bits(dtype):
    x = jnp.ones((2, 200), dtype)
    for w in (WEIGHT, np.full((200, 192), 3, ml_dtypes.float8_e4m3fn)):
        w = jentropy.to_resident(w, "reference")
        expected = jentropy.matmul(x.astype(jnp.bfloat16), w)
        assert bits(jentropy.matmul(x, w, out_dtype=jnp.bfloat16)) == bits(expected)


MESH = """
import sys, jax, jax.numpy as jnp, numpy as np, jentropy
from jax.sharding import NamedSharding, PartitionSpec as P
from jentropy import formats, models
jax.config.update("jax_disable_most_optimizations", True)  # compiles in half the time
mesh = jax.make_mesh((4,), ("x",))
place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
ids = np.arange(12, dtype=np.int32).reshape(4, 3)
one = models.load(sys.argv[1], compute_dtype=jnp.float32)
logits = jax.jit(lambda ids: one(ids))(ids)
spread = models.load(sys.argv[1], mesh=mesh, compute_dtype=jnp.float32)
w = (np.random.default_rng(0).standard_normal((128, 192)) * 0.02).astype(np.float32)
x = np.ones((8, 192), np.float32)

own = place(w, "x")
assert (jentropy.decompress(jentropy.compress({"w": own}))["w"] == w).all()
codes = jentropy.quantize(own, formats.INT4_GROUP)
weight = formats.QuantizedTensor(number_format=formats.INT4_GROUP, codes=codes)
resident = jentropy.to_resident(weight, "reference")
right = x @ np.asarray(jentropy.decode(resident, jnp.float32)).T
run = jax.jit(jentropy.matmul, static_argnames="transpose_w")
y = run(place(x, "x"), resident, transpose_w=True)
np.testing.assert_allclose(y, right, rtol=1e-3, atol=1e-4)

found = jax.jit(lambda ids: spread(ids))(place(ids, "x"))
np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
with jax.set_mesh(mesh):
    text = np.asarray(models.generate(spread, ids, max_new_tokens=2))
    assert (text[:, 3] == logits[:, -1].argmax(-1)).all()
    held = jentropy.to_resident(place(w, "x").astype(jnp.bfloat16), "reference")
    inside = lambda x: jentropy.matmul(x, held, transpose_w=True)
    rows = jax.shard_map(inside, in_specs=P("x"), out_specs=P("x"))(place(x, "x"))
    np.testing.assert_allclose(rows, inside(x), rtol=1e-3, atol=1e-4)

square = jax.make_mesh((2, 2), ("a", "b"))
tiled = jax.device_put(w, NamedSharding(square, P("a", "b")))
tiles = formats.QuantizedTensor(
    number_format=formats.MXFP4, codes=jentropy.quantize(tiled, formats.MXFP4)
)
right = jentropy.dequantize(formats.MXFP4, jentropy.quantize(w, formats.MXFP4))
assert (np.asarray(jentropy.decode(jentropy.to_resident(tiles, "reference"))) == right).all()
"""


def test_a_mesh_with_explicit_axes(archived):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", MESH, str(archived)], env=environment, check=True)
