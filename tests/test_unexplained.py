"""Weights that no dialect can explain: RAW with a note that names them, and the rest is read."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.checkpoints.companions import serves, stem
from jentropy.cli import main as cli
from jentropy.errors import InputError

from .test_dialects import BF16, E4M3, E8M0, declared, write

LAYER = "model.layers.0.self_attn.q_proj"
BLOCK = declared(quant_method="fp8", weight_block_size=[128, 128])
CODES = np.random.default_rng(0).standard_normal((130, 257)).astype(E4M3)
SCALE = np.full((), 0.5, np.float32)
GRID = np.full((2, 3), 0.5, np.float32)
ROWS = np.full((130, 1), 0.5, np.float32)
# How writers name the scale of `X.weight`, and its shape.
SPELLINGS = {
    "X.weight_scale": SCALE,
    "X.weight_scale_inv": GRID,
    "X.scale_w": SCALE,
    "X.qscale_weight": SCALE,
    "X.scale": GRID.astype(E8M0),
    "X.scales": ROWS,
    "X.weight.scale": SCALE,
    "X.weight._scale": SCALE,
    "X.weight_scales": ROWS,
    "X.weightScale": SCALE,
    "X.w_scale": SCALE,
    "X.wscale": SCALE,
    "X.weight_descale": SCALE,
    "X.descale": SCALE,
    "X.weight_inv_scale": GRID.astype(BF16),
    "X.weight_dequant_scale": ROWS[:, 0],
    "X.weights_scaling_factor": SCALE,
    "X.weight_quantizer._amax": SCALE,
    "X.weight_absmax": ROWS[:, 0],
    "X.SCB": ROWS[:, 0],
    "X.weight_s": ROWS,
    "X.s": ROWS,
    "X.weight_meta.s": SCALE,
    "X_scale": SCALE,
    "X_weight_scale": GRID,
    "scales.X.weight": SCALE,
    "scale/X.weight": SCALE,
    "X_s": ROWS,
    "X_scl": SCALE,
    "quantizer.X.weight": SCALE,
    "X.input_scale": SCALE,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fp8_beside_a_scale_under_any_name_is_raw_and_noted(spelling, tmp_path):
    scale = spelling.replace("X", LAYER)
    norm = "model.norm.weight"
    arrays = {f"{LAYER}.weight": CODES, scale: SPELLINGS[spelling], norm: np.ones(4, BF16)}
    write(tmp_path, arrays)
    checkpoint = jentropy.open_checkpoint(tmp_path)
    tensor = checkpoint.tensor(f"{LAYER}.weight")
    assert tensor.format == "RAW"
    assert scale.rpartition(".")[2] in tensor.note
    assert f"{LAYER}.weight" in checkpoint.notes[0]
    assert checkpoint.tensor(norm).format == "BF16"
    with pytest.raises(InputError, match="beside it lies"):
        tensor.dequantize()


PLAIN = {
    "alone": {},
    "a bias": {"X.bias": np.ones(130, np.float32)},
    "a norm after it": {"X_norm.weight": np.ones(130, BF16), "X_norm.bias": np.ones(130, BF16)},
    "scales of others": {"Y.weight_scale": SCALE, "model.logit_scale": SCALE},
    "scales of keys": {"model.layers.0.self_attn.k_scale": SCALE},
    "batch norm": {"X.running_mean": np.ones(130, np.float32), "X.running_var": ROWS[:, 0]},
    "an adapter": {"X.lora_A.weight": np.ones((4, 257), BF16), "X.alpha": SCALE},
    "modules of such names": {
        "model.layers.0.upscale.self_attn.q_proj.weight": SCALE,
        "zero_conv.weight": SCALE,
        "model.layers.0.scaler": SCALE,
    },
    "a norm of that name": {"model.layers.0.norm.scale": np.ones(130, np.float32)},
}


@pytest.mark.parametrize("name", PLAIN)
def test_fp8_that_nothing_scales_means_what_its_dtype_says(name, tmp_path):
    others = {key.replace("X", LAYER): values for key, values in PLAIN[name].items()}
    write(tmp_path, {f"{LAYER}.weight": CODES, **others})
    checkpoint = jentropy.open_checkpoint(tmp_path)
    assert checkpoint.notes == ()
    found = checkpoint.tensor(f"{LAYER}.weight")
    assert (found.format, found.note) == ("FP8_E4M3", "")
    assert (found.dequantize() == CODES.astype(np.float32)).all()


def test_scales_that_nothing_explains_are_no_weights(tmp_path):
    arrays = {
        "a.weight": np.zeros((64, 32), np.uint8),
        "a.weight_scale": np.ones((64, 4), E4M3),
        "a.weight_scale_2": SCALE,
        "b.array.qvalue": np.ones((64, 32), np.int8),
        "b.array.scale": np.ones((1, 32), np.float32),
    }
    write(tmp_path, arrays)
    checkpoint = jentropy.open_checkpoint(tmp_path)
    assert [checkpoint.tensor(n).auxiliary for n in arrays] == [False, True, True, False, True]
    assert jentropy.analyze(tmp_path).weights == 0
    assert "a.weight" in checkpoint.notes[0]
    assert "b.array.qvalue" in checkpoint.notes[1]


def test_pytrees_are_looked_at_alike():
    tree = {"dense": {"kernel": CODES, "kernel_scale": SCALE, "bias": np.ones(4, np.float32)}}
    apart = {"params": {"q": {"kernel": CODES}}, "scales": {"q": {"kernel": SCALE}}}
    assert "params.q.kernel" in jentropy.analyze(apart).notes[0]
    for given in (tree, jentropy.compress(tree), jax.tree.map(jnp.asarray, tree)):
        report = jentropy.analyze(given)
        assert report.weights == 4
        assert "dense.kernel" in report.notes[0]
    twice = {"a.b": CODES, "a": {"b": CODES}}  # two leaves of one name
    assert jentropy.analyze(twice).weights == 2 * CODES.size


def test_notes_show_everywhere_and_stay_in_the_compressed_checkpoint(tmp_path, capsys):
    arrays = {
        f"{LAYER}.weight": CODES,
        f"{LAYER}.weight_scale_inv": GRID,
        **{f"mtp.{i}.e_proj.weight": CODES for i in range(5)},
    }
    source, dst = write(tmp_path / "source", arrays, BLOCK), tmp_path / "dst"
    jentropy.compress_checkpoint(source, dst)
    for path in (source, dst):
        checkpoint = jentropy.open_checkpoint(path)
        assert checkpoint.tensor(f"{LAYER}.weight").format == "FP8_BLOCK"
        (note,) = checkpoint.notes
        assert "mtp.0.e_proj.weight, mtp.1.e_proj.weight" in note
        assert "and 2 more" in note
        assert "no weight_scale_inv" in note
        assert "no weight_scale_inv" in checkpoint.tensor("mtp.4.e_proj.weight").note
        assert cli.main(["analyze", str(path), "--json", str(tmp_path / "f")]) == 0
        assert note in capsys.readouterr().err
        report = json.loads((tmp_path / "f").read_text())
        assert report["notes"] == [note]
        rows = {row["name"]: row for row in report["tensors"]}
        assert "no weight_scale_inv" in rows["mtp.4.e_proj.weight"]["note"]
        assert "note" not in rows[f"{LAYER}.weight"]
        assert cli.main(["analyze", str(path), "--strict"]) == 2
        assert "mtp.0.e_proj.weight" in capsys.readouterr().err
    assert cli.main(["inspect", str(dst), "--json", str(tmp_path / "f")]) == 0
    assert note in capsys.readouterr().err
    rows = {row["name"]: row for row in json.loads((tmp_path / "f").read_text())["tensors"]}
    assert "no weight_scale_inv" in rows["mtp.4.e_proj.weight"]["note"]
    assert cli.main(["inspect", str(dst), "--strict"]) == 2
    assert cli.main(["compress", str(source), str(tmp_path / "other"), "--strict"]) == 2
    assert not (tmp_path / "other").exists()


def test_many_reasons_make_few_notes(tmp_path):
    arrays = {}
    for i in range(1, 60):
        arrays[f"m.{i}.weight"] = np.zeros((i, 8), E4M3)
        arrays[f"m.{i}.weight_scale_inv"] = np.zeros((i, 8), np.float32)
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, BLOCK))
    assert len(checkpoint.notes) < 25
    assert "more tensors" in checkpoint.notes[-1]


@pytest.mark.parametrize("where", ["a file beside", "left out by the index", "metadata"])
def test_fp8_whose_scales_lie_aside_is_raw_and_noted(where, tmp_path):
    arrays = {f"{LAYER}.weight": CODES, "model.norm.weight": np.ones(4, BF16)}
    scales = {f"{LAYER}.weight_scale_inv": GRID}
    source, dst = tmp_path / "source", tmp_path / "dst"
    if where == "a file beside":
        write(source, scales)
        (source / "model.safetensors").rename(source / "scales.safetensors")
        write(source, arrays)
    elif where == "metadata":
        write(source, arrays, metadata={f"{LAYER}.weight_scale": "0.5"})
    else:
        write(source, arrays | scales)
        index = {"weight_map": dict.fromkeys(arrays, "model.safetensors")}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    jentropy.compress_checkpoint(source, dst)
    for path in (source, dst):
        checkpoint = jentropy.open_checkpoint(path)
        tensor = checkpoint.tensor(f"{LAYER}.weight")
        assert (tensor.format, "weight_scale" in tensor.note) == ("RAW", True)
        assert tensor.note in checkpoint.notes[-1]
        assert checkpoint.tensor("model.norm.weight").format == "BF16"


def test_a_directory_of_one_file_and_its_archive_say_the_same(tmp_path):
    layers = {LAYER: {"format": "float8_e4m3fn"}}
    told = {"_quantization_metadata": json.dumps({"layers": layers})}
    source = write(tmp_path / "source", {f"{LAYER}.weight": CODES}, metadata=told)
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    notes = [jentropy.open_checkpoint(path).notes for path in (source, tmp_path / "dst")]
    assert notes[0] == notes[1] != ()


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {"fp8_scale": "1.0"}, {"quantized": "fp8"}])
def test_metadata_that_tells_of_no_scales_is_no_reason(metadata, tmp_path):
    write(tmp_path, {f"{LAYER}.weight": CODES}, metadata=metadata)
    assert jentropy.open_checkpoint(tmp_path).tensor(f"{LAYER}.weight").format == "FP8_E4M3"


def test_a_scale_that_has_no_place_in_its_format_is_not_left_out(tmp_path):
    arrays = {
        "a.weight": CODES,
        "a.weight_scale_inv": GRID,
        "a.weight_scale_2": SCALE,
        "b.weight": CODES,
        "b.weight_scale_inv": GRID,
    }
    write(tmp_path, arrays, BLOCK)
    checkpoint = jentropy.open_checkpoint(tmp_path)
    assert checkpoint.tensor("a.weight").format == "RAW"
    assert "weight_scale_2" in checkpoint.tensor("a.weight").note
    assert checkpoint.tensor("b.weight").format == "FP8_BLOCK"
    with pytest.raises(InputError, match="weight_scale_2"):
        jentropy.open_checkpoint(tmp_path, strict=True)


def tiny_llama(folder, change):
    """A checkpoint of the Llama architecture whose arrays `change` alters."""
    rng = np.random.default_rng(1)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        **declared(quant_method="fp8", activation_scheme="dynamic"),
    }
    shapes = {
        "model.embed_tokens.weight": (16, 16),
        "lm_head.weight": (16, 16),
        "model.norm.weight": (16,),
        "model.layers.0.input_layernorm.weight": (16,),
        "model.layers.0.post_attention_layernorm.weight": (16,),
        **{f"model.layers.0.self_attn.{n}_proj.weight": (16, 16) for n in "qkvo"},
        "model.layers.0.mlp.gate_proj.weight": (32, 16),
        "model.layers.0.mlp.up_proj.weight": (32, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 32),
    }
    arrays = {name: rng.standard_normal(shape).astype(BF16) for name, shape in shapes.items()}
    change(arrays)
    return write(folder, arrays, config)


def test_a_model_refuses_only_what_it_must_have(tmp_path):
    down = "model.layers.0.mlp.down_proj"

    def one_more(arrays):
        arrays["mtp.0.e_proj.weight"] = CODES  # no scale; the architecture does not need it

    def without_scale(arrays):
        arrays[f"{down}.weight"] = arrays[f"{down}.weight"].astype(E4M3)

    def packed_otherwise(arrays):
        arrays[f"{down}.qweight"] = np.zeros((4, 16), np.int32)
        del arrays[f"{down}.weight"]

    model = jentropy.models.load(tiny_llama(tmp_path / "a", one_more))
    assert np.isfinite(np.asarray(model(np.zeros((1, 2), np.int32)))).all()
    with pytest.raises(
        InputError, match=r"down_proj\.weight is kept as RAW codes \(no weight_scale"
    ):
        jentropy.models.load(tiny_llama(tmp_path / "b", without_scale))
    with pytest.raises(
        InputError, match=r"missing .*down_proj\.weight: .*down_proj\.qweight is kept"
    ):
        jentropy.models.load(tiny_llama(tmp_path / "c", packed_otherwise))


def test_stems_tell_weights_from_each_other():
    assert stem("a.q.weight_scale_inv") == stem("a.q.weight") == stem("scales.a.q.qscale_weight")
    assert stem("a.q.input_scale") != stem("a.q.weight")
    assert stem("a.0.weight") != stem("a.1.weight_scale")
    assert stem("attn.value.kernel") != stem("attn.query.kernel_scale")
    assert stem("experts.w13_weight_scale_2") == stem("experts.w13_weight")


@pytest.mark.parametrize(
    ("small", "shape", "expected"),
    [
        ((), (4, 8), True),
        ((1,), (4, 8), True),
        ((4,), (4, 8), True),
        ((8,), (4, 8), True),
        ((4, 1), (4, 8), True),
        ((2, 3), (130, 257), True),
        ((3, 2), (130, 257), True),
        ((4, 2), (4, 64), True),
        ((16,), (4, 64), True),
        ((3, 7), (4, 8), False),
        ((4, 8), (4, 8), False),
        ((9,), (4, 8), False),
        ((0,), (4, 8), False),
        ((32, 1), (4, 64), True),
        ((2, 1, 3), (130, 257), True),
        ((2, 3, 1, 1), (130, 257), True),
    ],
)
def test_shapes_that_could_be_scales(small, shape, expected):
    assert serves(small, shape) is expected


def test_elements_narrower_than_their_dtype_are_refused():
    for dtype, bits in ((np.int8, 3), (np.float16, 12), (ml_dtypes.int4, 3), (E4M3, 7)):
        with pytest.raises(InputError, match=f"found {bits}"):
            formats.ElementFormat(
                name="X", dtype=np.dtype(dtype), fields=(formats.Field(name="code", bits=bits),)
            )
    excess = formats.ElementFormat(
        name="INT3",
        dtype=np.dtype(np.uint8),
        fields=(formats.Field(name="code", bits=3),),
        excess=4,
    )
    assert excess.decode(np.arange(8, dtype=np.uint8)).tolist() == list(range(-4, 4))
