"""Models from dense and compressed weights: loading, the same bits, tokens (see `test_truth`)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jentropy
from jentropy import formats, models
from jentropy.checkpoints import safetensors
from jentropy.errors import InputError, UnsupportedError
from jentropy.models import layers
from jentropy.models.config import RopeConfig, decoder_config
from jentropy.models.rope import inverse_frequencies
from jentropy.pallas_kernels import ResidentTensor

from .conftest import same_bits

FLOAT32 = jnp.float32
BF16 = ("llama_bf16", "qwen3_bf16_tied")


def reference(file: Path) -> dict[str, np.ndarray]:
    return {a.name: np.array(a.read()) for a in safetensors.read(file).arrays}


def logits(model, ids) -> np.ndarray:
    return np.asarray(nnx.jit(lambda m, i: m(i))(model, jnp.asarray(ids, jnp.int32)))


@pytest.fixture(scope="module")
def loaded(fixtures, packed):
    """(dense, compressed) by name, computing in float32."""
    return {
        name: [models.load(p, compute_dtype=FLOAT32) for p in (fixtures / name, packed[name])]
        for name in BF16
    }


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("name", BF16)
@pytest.mark.parametrize("dtype", [None, FLOAT32])
def test_compressed_logits_are_the_dense_ones_bit_for_bit(name, dtype, fixtures, packed):
    dense, ours = (models.load(p, compute_dtype=dtype) for p in (fixtures / name, packed[name]))
    assert dense.compute_dtype == (jnp.bfloat16 if dtype is None else dtype)
    kinds = [type(layer.mlp.up_proj.weight.get_value()) for layer in ours.layers]
    assert kinds == [ResidentTensor] * len(kinds)
    ids = np.random.default_rng(0).integers(0, 256, (3, 17))
    found = logits(ours, ids)
    assert found.dtype == np.float32
    assert found.shape == (3, 17, 256)
    assert same_bits(found, logits(dense, ids))


@pytest.mark.parametrize("name", ["llama_fp16", "llama_fp32"])
def test_other_formats_load_and_compute_in_float32(name, fixtures, packed):
    dense, ours = (models.load(p) for p in (fixtures / name, packed[name]))
    assert dense.compute_dtype == jnp.float32
    ids = np.arange(12)[None]
    assert same_bits(logits(ours, ids), logits(dense, ids))


# Models of compressed-tensors, GPTQModel and ModelOpt: format and most bits of a projection.
QUANTISED = {
    "ct_fp8_block": ("FP8_BLOCK", 8.1),
    "gptq_v1": ("INT4", 4.76),
    "mo_nvfp4": ("NVFP4", 4.6),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_run_as_they_are_stored(name, fixtures, packed):
    """From the files as from a compressed checkpoint; dense if that is asked for."""
    number_format, most = QUANTISED[name]
    ids = np.random.default_rng(0).integers(0, 250, (2, 9))
    found = []
    for path in (fixtures / name, packed[name]):
        model = models.load(path, compute_dtype=FLOAT32)
        for parts, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            weight = variable.get_value()
            if "_proj" in ".".join(map(str, parts)):
                assert weight.number_format.name == number_format
                assert weight.bits_per_weight < most
        dense = models.load(path, compute_dtype=FLOAT32, dense=True)
        arrays = jax.tree.leaves(nnx.state(dense), is_leaf=lambda x: isinstance(x, ResidentTensor))
        assert all(isinstance(array, jax.Array) for array in arrays)
        found += [logits(model, ids), logits(dense, ids)]
    assert same_bits(found[0], found[2])
    assert same_bits(found[1], found[3])
    assert relative_error(found[0], found[1]) < 1e-5


def test_a_quantised_table_is_looked_up_in_the_dtype_of_the_activations():
    values = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    codes = jentropy.quantize(jnp.asarray(values), formats.INT8_ROW)
    table = formats.QuantizedTensor(number_format=formats.INT8_ROW, codes=codes)
    embed = layers.Embed(256, 64, rngs=nnx.Rngs(0))
    embed.weight.set_value(jentropy.to_resident(table, backend="reference"))
    ids = jnp.array([0, 255, 7])
    expected = np.asarray(table.dequantize(np.float32))[np.asarray(ids)]
    assert same_bits(np.asarray(embed(ids, FLOAT32)), expected)


def test_shards_load_like_one_file(fixtures):
    ids = np.arange(9)[None]
    whole, parts = (models.load(fixtures / n) for n in ("qwen3_bf16_tied", "qwen3_bf16_sharded"))
    assert logits(whole, ids).shape == logits(parts, ids).shape
    assert len(parts.layers) == 1  # whatever the order in which weights come
    assert np.isfinite(logits(parts, ids)).all()


def test_generation_is_the_forward_pass_step_by_step(loaded):
    model = loaded["qwen3_bf16_tied"][0]
    ids = np.random.default_rng(1).integers(0, 256, (2, 5))
    out = np.asarray(models.generate(model, ids, max_new_tokens=6))
    for step in range(6):
        following = logits(model, out[:, : 5 + step])[:, -1].argmax(-1)
        np.testing.assert_array_equal(following, out[:, 5 + step])


def with_config(model, **changes):
    graph, state = nnx.split(model)
    copy = nnx.merge(graph, state)
    copy.config = dataclasses.replace(copy.config, **changes)
    return copy


def test_a_sequence_ends_at_its_end_token(loaded):
    model = loaded["llama_bf16"][0]
    ids = np.random.default_rng(2).integers(0, 256, (3, 4))
    free = np.asarray(models.generate(model, ids, max_new_tokens=8))
    end = int(free[0, 5])
    ended = with_config(model, eos_token_ids=(end,), pad_token_id=7)
    out = np.asarray(models.generate(ended, ids, max_new_tokens=8))
    for row, expected in zip(out, free, strict=True):
        stops = np.flatnonzero(expected[4:] == end)
        kept = 4 + (int(stops[0]) + 1 if stops.size else 8)
        np.testing.assert_array_equal(row[:kept], expected[:kept])
        assert (row[kept:] == 7).all()


def test_sampling_follows_its_seed(loaded):
    model = loaded["llama_bf16"][0]
    ids = np.zeros((2, 3), int)

    def sample(seed, temperature=1.0):
        return np.asarray(
            models.generate(model, ids, max_new_tokens=12, temperature=temperature, seed=seed)
        )

    np.testing.assert_array_equal(sample(1), sample(1))
    assert (sample(1) != sample(2)).any()
    greedy = np.asarray(models.generate(model, ids, max_new_tokens=12))
    np.testing.assert_array_equal(sample(1, temperature=1e-6), greedy)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.zeros((1, 0), int), {"max_new_tokens": 1}, "not empty"),
        (np.zeros(3, int), {"max_new_tokens": 1}, "batch, time"),
        ([1, 2], {"max_new_tokens": 1}, r"found \[1, 2\]"),
        ("text", {"max_new_tokens": 1}, "found 'text'"),
        (np.array([[256]]), {"max_new_tokens": 1}, "expected 0 to 255"),
        (np.array([[-1]]), {"max_new_tokens": 1}, "expected 0 to 255"),
        (np.zeros((1, 4), int), {"max_new_tokens": 2045}, "at most 2048 positions, found 2049"),
        (np.zeros((1, 4), int), {"max_new_tokens": -1}, "0 or more"),
        (np.zeros((1, 4), int), {"max_new_tokens": 1, "temperature": -0.5}, "0 or more"),
        (np.zeros((1, 4), int), {"max_new_tokens": 1, "temperature": np.nan}, "0 or more"),
        (np.zeros((1, 4), int), {"max_new_tokens": 1, "seed": 2**70}, "seed"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_prompts_that_cannot_be_continued_are_refused(ids, options, message, loaded):
    with pytest.raises(InputError, match=message):
        models.generate(loaded["llama_bf16"][0], ids, **options)


@pytest.mark.parametrize("ids", [[1, 2], [[0.5]]])
@pytest.mark.usefixtures("unchecked")
def test_a_model_takes_sequences_of_token_ids(ids, loaded):
    with pytest.raises(InputError, match="batch, time"):
        loaded["llama_bf16"][0](ids)


@pytest.mark.usefixtures("unchecked")
def test_activations_are_of_two_dtypes(fixtures):
    with pytest.raises(InputError, match="bfloat16 or float32, found float16"):
        models.load(fixtures / "llama_bf16", compute_dtype="float16")


def test_no_new_tokens_give_the_prompt(loaded):
    ids = np.array([[3, 1, 2]])
    np.testing.assert_array_equal(
        models.generate(loaded["llama_bf16"][0], ids, max_new_tokens=0), ids
    )


OLD_KEYS = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
}
BASE = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
}


def test_old_and_new_config_keys_mean_the_same():
    scaling = OLD_KEYS["rope_scaling"]
    new = {"rope_parameters": {**scaling, "rope_theta": 500000.0}, "dtype": "bfloat16"}
    older = {**OLD_KEYS, "rope_scaling": {**scaling, "type": "llama3"}}
    del older["rope_scaling"]["rope_type"]
    configs = [decoder_config({**BASE, **keys}) for keys in (OLD_KEYS, new, older)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope == RopeConfig(
        theta=500000.0,
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_context=8192,
    )
    assert (configs[0].num_kv_heads, configs[0].head_dim) == (2, 4)


def test_llama3_frequencies():
    """Short wavelengths are kept, long ones slowed by the factor, the rest lies between."""
    config = decoder_config({**BASE, **OLD_KEYS}).rope
    plain = inverse_frequencies(RopeConfig(theta=500000.0), 128)
    scaled = inverse_frequencies(config, 128)
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    between = (wavelength > 8192 / 4) & (wavelength < 8192)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vocab_size": None}, InputError, "vocab_size"),
        ({"num_hidden_layers": 0}, InputError, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, InputError, "num_hidden_layers': expected at most"),
        ({"hidden_size": "big"}, InputError, "hidden_size"),
        ({"hidden_size": float("inf")}, InputError, "hidden_size"),
        ({"vocab_size": float("nan")}, InputError, "vocab_size"),
        ({"num_key_value_heads": "abc"}, InputError, "num_key_value_heads"),
        ({"head_dim": [1]}, InputError, "head_dim"),
        ({"eos_token_id": "</s>"}, InputError, "eos_token_id"),
        ({"pad_token_id": {}}, InputError, "pad_token_id"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        (
            {"rope_scaling": {**OLD_KEYS["rope_scaling"], "high_freq_factor": 1.0}},
            InputError,
            "low_freq_factor: expected below high_freq_factor = 1.0, found 1.0",
        ),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, InputError, "multiple"),
        ({"rope_scaling": {"rope_type": "mrope"}}, UnsupportedError, "found mrope"),
        ({"rope_scaling": {"rope_type": "yarn"}}, InputError, "'factor'"),
        ({"rope_theta": "x"}, InputError, "rope_theta"),
        ({"hidden_act": "tanh"}, UnsupportedError, "hidden_act"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        decoder_config({**BASE, **changes})


def changed(fixtures, tmp_path, **changes) -> Path:
    folder = Path(shutil.copytree(fixtures / "llama_bf16", tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_unknown_architectures_are_refused_by_name(fixtures, tmp_path):
    folder = changed(fixtures, tmp_path, architectures=["MambaForCausalLM"])
    with pytest.raises(UnsupportedError, match=r"as Llama.*'MambaForCausalLM'.*how to add one"):
        models.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="no config"):
        models.load(folder)


def test_all_weights_that_do_not_fit_are_named(fixtures, tmp_path):
    folder = changed(fixtures, tmp_path, hidden_size=64, num_hidden_layers=3)
    with pytest.raises(InputError, match=r"missing model\.layers\.2\..*and \d+ more"):
        models.load(folder)
    shutil.rmtree(folder)
    folder = changed(fixtures, tmp_path, num_hidden_layers=1)
    with pytest.raises(InputError, match=r"unexpected model\.layers\.1\."):
        models.load(folder)
    shutil.rmtree(folder)
    folder = changed(fixtures, tmp_path, vocab_size=100)
    with pytest.raises(InputError, match=r"shape \[256, 128\] instead of \[100, 128\]"):
        models.load(folder)


def test_the_bundled_model_is_trained(tmp_path):
    run = json.loads((models.BUNDLED / "training.json").read_text())
    losses = [entry["held_out_loss"] for entry in run["losses_nats_per_token"]]
    assert losses[-1] < losses[0] - 1.5
    size = sum(p.stat().st_size for p in models.BUNDLED.iterdir())
    assert size <= 5_000_000
    model, tokenizer = models.load(models.BUNDLED), models.load_tokenizer(models.BUNDLED)
    text = Path(json.__file__).read_text()[:3000]
    ids = np.array([[0, *tokenizer.encode(text).ids][:256]])
    scores = jax.nn.log_softmax(jnp.asarray(logits(model, ids)[:, :-1]))
    loss = -np.take_along_axis(np.asarray(scores), ids[:, 1:, None], axis=-1).mean()
    assert loss < 4.5  # a uniform guess costs log 1024 = 6.9
    kept, out = models.continue_text(model, tokenizer, "def f(", max_new_tokens=8)
    assert out.startswith("def f(")
    assert len(kept) <= len(tokenizer.encode("def f(").ids) + 8


def test_a_trained_model_is_saved_as_a_checkpoint(tmp_path):
    training = pytest.importorskip("jentropy.models.training.pystdlib", reason="needs extra train")
    trained = models.load(models.BUNDLED)
    training.save(trained, models.load_tokenizer(models.BUNDLED), [], tmp_path)
    chex.assert_trees_all_equal(nnx.state(models.load(tmp_path)), nnx.state(trained))
