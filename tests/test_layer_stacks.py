"""Layers in stacks: one program for all of one kind, filled in place, whatever they are made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.flax import load_file, save_file

import jentropy
from jentropy import formats, models
from jentropy.errors import InputError, UnsupportedError
from jentropy.models.architectures.llama import LLAMA
from jentropy.models.config import DecoderConfig, RopeConfig
from jentropy.models.decoder import Decoder
from jentropy.models.kinds import members_of, periods
from jentropy.models.names import Place, Rule, places
from jentropy.pallas_kernels import to_resident
from jentropy.pallas_kernels.filling import likeness, put

from .conftest import same_bits

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e4),
    tie_word_embeddings=True,
)
IDS = np.random.default_rng(0).integers(0, 64, (2, 21))


def model_of(**changes) -> Decoder:
    config = dataclasses.replace(CONFIG, **changes)
    return Decoder(config, compute_dtype=jnp.float32, rngs=nnx.Rngs(0))


def logits(model, ids) -> np.ndarray:
    return np.asarray(nnx.jit(lambda m, i: m(i))(model, jnp.asarray(ids, jnp.int32)))


def equations(jaxpr) -> int:
    """Equations of a program and of all programs within it."""
    inner = [
        value
        for equation in jaxpr.eqns
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        )
        if hasattr(value, "eqns") or hasattr(value, "jaxpr")
    ]
    return len(jaxpr.eqns) + sum(equations(getattr(v, "jaxpr", v)) for v in inner)


@pytest.mark.parametrize("window", [None, 8])
def test_a_program_does_not_grow_with_the_layers(window):
    """Of layers that are all alike, and of local and global ones in turn."""
    sizes = []
    for layers in (4, 32):
        windows = (window, None) * (layers // 2)
        graph, state = nnx.split(
            nnx.eval_shape(lambda w=windows: model_of(num_layers=len(w), windows=w))
        )
        program = jax.make_jaxpr(lambda state, ids, graph=graph: nnx.merge(graph, state)(ids))
        sizes.append(equations(program(state, IDS).jaxpr))
    assert sizes[0] == sizes[1] > 50


def test_ropes_are_data():
    """Layers of other frequencies share a stack and a program, and are turned by their own."""

    class Alternating(DecoderConfig):
        __slots__ = ()

        def layers(self):
            own = DecoderConfig.layers(self)
            fast = RopeConfig(theta=7.0)
            return tuple(
                dataclasses.replace(one, rope=fast) if i % 2 else one for i, one in enumerate(own)
            )

    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    model = Decoder(Alternating(**fields), compute_dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert model.members == ((0, 1, 2, 3),)
    plain = model_of()
    nnx.update(plain, nnx.state(model))
    first = logits(model, IDS), logits(plain, IDS)
    np.testing.assert_allclose(first[0][:, 0], first[1][:, 0], rtol=1e-5)  # position 0
    assert np.abs(first[0][:, 1:] - first[1][:, 1:]).max() > 1e-4


def test_what_repeats():
    local_global = [0] * 5 + [1]
    assert periods(local_global * 4 + [0, 0]) == [([(0, 5), (1, 1)], 4), ([(0, 2)], 1)]
    assert periods([0] + [1] * 60) == [([(0, 1)], 1), ([(1, 60)], 1)]
    assert periods([0, 1] * 12) == [([(0, 1), (1, 1)], 12)]
    assert periods([0]) == [([(0, 1)], 1)]
    for kinds in ([0, 1, 2, 0, 1], [0, 0, 1, 0, 1, 1, 0, 1], [2, 1, 2, 1, 1, 2]):
        spelled = [
            kind
            for runs, repeats in periods(kinds)
            for _ in range(repeats)
            for kind, count in runs
            for _ in range(count)
        ]
        assert spelled == kinds
    assert members_of([3, 1, 3]) == ((0, 2), (1,))


@pytest.mark.parametrize("windows", [(5, 5), (5, 3), (5, None)])
def test_a_layer_sees_its_window(windows):
    model = model_of(num_layers=2, windows=windows)
    assert len(model.members) == 1 + (None in windows)
    seen = 1 + sum(window - 1 for window in windows if window) if None not in windows else 21
    plain = logits(model, IDS)
    for back in (seen - 1, seen):
        other = IDS.copy()
        if back < IDS.shape[1]:
            other[:, -1 - back] ^= 1
        changed = logits(model, other)
        reaches = np.abs(changed[:, -1] - plain[:, -1]).max() > 1e-6
        assert reaches == (back < seen)
        np.testing.assert_array_equal(changed[:, : -1 - back], plain[:, : -1 - back])


@pytest.mark.parametrize("prompt", [2, 11])
def test_a_sliding_cache_keeps_its_window_only(prompt):
    model = model_of(num_layers=3, windows=(5, None, 3))
    caches = model.new_cache(2, 20)
    assert [cache.arrays[0].shape[:4] for cache in caches] == [(2, 2, 2, 5), (1, 2, 2, 20)]
    out = np.asarray(models.generate(model, IDS[:, :prompt], max_new_tokens=9))
    following = logits(model, out).argmax(-1)
    np.testing.assert_array_equal(following[:, prompt - 1 : -1], out[:, prompt:])


def rewritten(source: Path, target: Path, change, config=None) -> Path:
    """A copy of a checkpoint of one file whose arrays are `change` of those by name."""
    target.mkdir()
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    told = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**told, **(config or {})}))
    return target


def both(source: Path) -> tuple[Decoder, Decoder]:
    """The models of a directory and of its compressed checkpoint."""
    packed = source.with_name(f"{source.name}-packed")
    jentropy.compress_checkpoint(source, packed)
    return tuple(models.load(path, compute_dtype=jnp.float32) for path in (source, packed))


GATE = "model.layers.{}.mlp.gate_proj.weight"


def noise(shape) -> jax.Array:
    """Values of every magnitude: window12 does not make them smaller."""
    exponents = np.random.default_rng(0).integers(-90, 0, shape)
    return jnp.asarray(np.exp2(exponents.astype(np.float32)), jnp.bfloat16)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_escapes_of_one_layer_do_not_show(share, fixtures, tmp_path):
    """A longer list of escapes; so many that the layer rests dense, which is known late."""

    def change(arrays):
        name = GATE.format(1)
        rows = int(arrays[name].shape[0] * share)
        arrays[name] = arrays[name].at[:rows].set(noise((rows, arrays[name].shape[1])))
        return arrays

    dense, ours = both(rewritten(fixtures / "llama_bf16", tmp_path / "model", change))
    assert len(dense.layers) == 1
    assert len(ours.layers) == (1 if share < 1 else 2)
    assert same_bits(logits(ours, IDS), logits(dense, IDS))


def test_layers_of_other_formats_have_a_stack_of_their_own(fixtures, tmp_path):
    def change(arrays):
        name = GATE.format(0)
        codes = jentropy.quantize(arrays[name].astype(jnp.float32), formats.FP8_BLOCK)
        arrays[name] = jax.lax.bitcast_convert_type(codes["code"], jnp.float8_e4m3fn)
        scale = jax.lax.bitcast_convert_type(codes["scale"], jnp.float32)
        return arrays | {f"{name}_scale_inv": scale}

    told = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config = {"quantization_config": told}
    source = rewritten(fixtures / "llama_bf16", tmp_path / "model", change, config)
    dense, ours = both(source)
    assert [stack.mlp.gate_proj.weight.get_value().format for stack in ours.layers] == [
        "FP8_BLOCK",
        "BF16",
    ]
    expected = logits(dense, IDS)
    assert np.abs(logits(ours, IDS) - expected).max() < 1e-5 * np.abs(expected).max()


def test_stacks_are_filled_in_place():
    matrices = [np.random.default_rng(i).standard_normal((64, 256)) for i in range(3)]
    matrices[1][:4] *= 2.0 ** -(np.arange(256) % 40)  # longer lists
    packed = [to_resident(jnp.asarray(m, jnp.bfloat16), "reference") for m in matrices]
    stack = put(None, (3,), (2,), packed[2])
    for i in (0, 1):
        words = stack.arrays["signs"]
        stack = put(stack, (3,), (i,), packed[i])
        assert stack.arrays["signs"] is words, "of one CPU device, filled by NumPy"
    assert {likeness(one) for one in packed} == {likeness(packed[0])}
    assert stack.shape == (3, 64, 256)
    for i, one in enumerate(packed):
        assert same_bits(jentropy.decode(stack[i]), jentropy.decode(one))
        rows = jentropy.pallas_kernels.take_rows(stack[i], jnp.arange(64))
        assert same_bits(rows, jentropy.decode(one))


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_a_stack_that_is_filled_is_one_that_is_packed(backend):
    rng = np.random.default_rng(0)
    matrices = [(rng.standard_normal((256, 512)) * 0.02).astype(ml_dtypes.bfloat16) for _ in "12"]
    matrices[1][:8, :64] = np.exp2(rng.integers(-80, -20, (8, 64)).astype(np.float32))
    matrices[0][3, 3] = matrices[1][7, 9] = np.nan
    packed = [to_resident(jnp.asarray(m), backend) for m in matrices]
    assert likeness(packed[0]) == likeness(packed[1])
    stack = put(put(None, (2,), (1,), packed[1]), (2,), (0,), packed[0])
    whole = to_resident(jnp.asarray(np.stack(matrices)), backend)
    assert stack.layout == whole.layout == f"{backend}_window12"
    for name, array in whole.arrays.items():
        assert same_bits(np.asarray(stack.arrays[name]), np.asarray(array)), name
    assert dict(stack.options).keys() == dict(whole.options).keys()
    for name in dict(whole.options).keys() - {"inline"}:  # chunks of most tiles, of some matrix
        assert stack.option(name) == whole.option(name)


FUSED = (
    Rule(
        name=r"model\.(layers\.\d+\.self_attn)\.qkv_proj\.weight",
        paths=tuple(rf"\1.{name}_proj.weight" for name in "qkv"),
    ),
    Rule(name=r"model\.(layers\.\d+\.mlp\.gate_proj\.weight)", paths=(r"\1",), transposed=True),
    *LLAMA.names,
)


@pytest.mark.parametrize("quantised", [False, True])
def test_weights_are_split_and_transposed(quantised, fixtures, tmp_path, monkeypatch):
    def change(arrays):
        for layer in range(2):
            attention = f"model.layers.{layer}.self_attn"
            parts = [arrays.pop(f"{attention}.{name}_proj.weight") for name in "qkv"]
            arrays[f"{attention}.qkv_proj.weight"] = jnp.concatenate(parts)
            arrays[GATE.format(layer)] = arrays[GATE.format(layer)].T
        return arrays

    expected = models.load(fixtures / "llama_bf16", compute_dtype=jnp.float32)
    source = rewritten(fixtures / "llama_bf16", tmp_path / "model", change)
    with pytest.raises(InputError, match=r"missing model\.layers\.0\.self_attn\.k_proj\.weight"):
        models.load(source)
    fused = dataclasses.replace(LLAMA, names=FUSED)
    monkeypatch.setitem(models.ARCHITECTURES, "LlamaForCausalLM", fused)
    for model in both(source):
        assert same_bits(logits(model, IDS), logits(expected, IDS))


@pytest.mark.parametrize("number_format", [formats.FP8_BLOCK, formats.NVFP4, formats.INT8_ROW])
@pytest.mark.parametrize("rows", [None, (128, 256), (48, 192)])
def test_quantised_weights_are_cut_and_turned_with_their_blocks(number_format, rows):
    values = jnp.asarray(np.random.default_rng(0).standard_normal((256, 192)), jnp.float32)
    codes = {n: np.asarray(c) for n, c in jentropy.quantize(values, number_format).items()}
    whole = formats.QuantizedTensor(number_format=number_format, codes=codes)
    numbers = whole.dequantize()
    place = Place(path=("w",), shape=(256, 192), rows=rows)
    part = slice(*(rows or (None,)))
    np.testing.assert_array_equal(place.of_quantized(whole).check().dequantize(), numbers[part])
    turned = dataclasses.replace(place, transposed=True).of_quantized(whole).check()
    np.testing.assert_array_equal(turned.dequantize(), numbers.T[part])


def test_scattered_groups_of_columns_are_not_turned():
    codes = {"code": np.zeros((8, 4), np.uint8), formats.GROUP_INDEX: np.zeros(4, np.int32)}
    whole = formats.QuantizedTensor(number_format=formats.INT8_ROW, codes=codes)
    with pytest.raises(UnsupportedError, match=r"act-order: expected \[out, in\]"):
        Place(path=("w",), shape=(8, 4), transposed=True).of_quantized(whole)


def test_experts_lie_in_one_stack():
    rule = Rule(
        name=r"model\.(layers\.\d+)\.block_sparse_moe\.(experts\.\d+)\.w1\.weight",
        paths=(r"\1.mlp.\2.gate_proj.weight",),
    )
    path = ("layers", 0, "mlp", "experts", "gate_proj", "weight")
    name = "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"
    names = [name.format(layer, expert) for layer in range(2) for expert in range(3)]
    named, missing = places(names, [rule], {path: (2, 3, 8, 4)}, [(0, 1)])
    assert not missing
    assert named[name.format(1, 2)] == [
        Place(path=path, axes=(2, 3), index=(1, 2), shape=(8, 4)),
    ]
    strange = [name.format(0, 3), name.format(2, 0), "model.layers.0.mlp.w", names[0]]
    named, missing = places([*names[:-1], *strange], [rule], {path: (2, 3, 8, 4)}, [(0, 1)])
    assert list(named) == names[:-1]
    assert missing == ["model.layers.1.mlp.experts.gate_proj.weight"]


def test_a_rule_without_a_path_is_of_a_weight_that_is_not_needed():
    rules = (Rule(name=r"model\.layers\.9\..*", paths=()), Rule(name=r"(.+)", paths=(r"\1",)))
    names = ["model.layers.9.w.weight", "norm.weight"]
    named, missing = places(names, rules, {("norm", "weight"): (3,)}, ())
    assert named == {names[0]: [], names[1]: [Place(path=("norm", "weight"), shape=(3,))]}
    assert not missing


def test_windows_are_of_every_layer():
    with pytest.raises(InputError, match="windows: expected 4, by layer, found 3"):
        dataclasses.replace(CONFIG, windows=(4, None, 4))


def test_a_weight_that_is_there_twice_is_unexpected(fixtures, tmp_path):
    def change(arrays):
        return arrays | {"norm.weight": arrays["model.norm.weight"]}

    source = rewritten(fixtures / "llama_bf16", tmp_path / "model", change)
    with pytest.raises(InputError, match=r"unexpected (model\.)?norm\.weight"):
        models.load(source)
