"""Dialects of few lines, written by hand, against the documented arithmetic of their tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.checkpoints import archived, decoding, slabs
from jentropy.errors import InputError

from .conftest import read_tree
from .test_dialects import BF16, E4M3, E8M0, declared, dequantized, gptq, write

RNG = np.random.default_rng(0)
CODES = RNG.standard_normal((130, 257)).astype(E4M3)
NUMBERS = CODES.astype(np.float32)
GRID = RNG.random((2, 3)).astype(np.float32)
SPREAD = np.repeat(np.repeat(GRID, 128, 0), 128, 1)[:130, :257]
ROWS = RNG.random((130, 1)).astype(np.float32)
HALF = np.array(0.5, np.float32)


def opened(folder: Path, name: str = "a.weight"):
    return jentropy.open_checkpoint(folder).tensor(name)


def survives(folder: Path, tmp_path: Path) -> None:
    """Compressed, a checkpoint says the same and gives its bytes back."""
    jentropy.compress_checkpoint(folder, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(folder)
    ours, theirs = jentropy.open_checkpoint(tmp_path / "dst"), jentropy.open_checkpoint(folder)
    assert ours.notes == theirs.notes
    for name in theirs.names():
        a, b = ours.tensor(name), theirs.tensor(name)
        assert (a.format, a.dialect, a.note, a.auxiliary) == (
            b.format,
            b.dialect,
            b.note,
            b.auxiliary,
        )
        if a.format != "RAW":
            assert a.dequantize().tobytes() == b.dequantize().tobytes()


# FP8 by one method and under either name.


@pytest.mark.parametrize("shape", [(130, 1), (130,), ()])
def test_fbgemm_fp8(tmp_path, shape):
    scale = ROWS.reshape(shape) if shape else HALF
    arrays = {"a.weight": CODES, "a.weight_scale": scale, "a.input_scale_ub": np.float32([1200])}
    write(tmp_path / "c", arrays, declared(quant_method="fbgemm_fp8", activation_scale_ub=1200.0))
    assert (dequantized(tmp_path / "c", "a.weight") == NUMBERS * (ROWS if shape else 0.5)).all()
    assert opened(tmp_path / "c", "a.input_scale_ub").auxiliary
    survives(tmp_path / "c", tmp_path)


def test_fbgemms_experts_have_scales_of_columns(tmp_path):
    codes = RNG.standard_normal((2, 4, 6)).astype(E4M3)
    scale = RNG.random((2, 1, 6)).astype(np.float32)
    arrays = {"experts.gate_up_proj": codes, "experts.gate_up_proj_scale": scale}
    write(tmp_path, arrays, declared(quant_method="fbgemm_fp8"))
    found = dequantized(tmp_path, "experts.gate_up_proj")
    assert (found == codes.astype(np.float32) * scale).all()


@pytest.mark.parametrize("name", ["a.weight_scale", "a.weight_scale_inv"])
def test_block_scales_under_either_name(tmp_path, name):
    keys = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    write(tmp_path, {"a.weight": CODES, name: GRID}, declared(**keys))
    assert (dequantized(tmp_path, "a.weight") == NUMBERS * SPREAD).all()
    both = {"a.weight": CODES, "a.weight_scale": GRID, "a.weight_scale_inv": GRID}
    write(tmp_path, both, declared(**keys))
    assert "found both" in opened(tmp_path).note


@pytest.mark.parametrize("part", ["llm_config", "text_config", "thinker_config.text_config"])
def test_the_quantisation_of_a_part_of_the_config(tmp_path, part):
    config = declared(quant_method="fp8", weight_block_size=[128, 128])
    for key in reversed(part.split(".")):
        config = {key: config, "vision_config": {"depth": 2}}
    write(tmp_path, {"a.weight": CODES, "a.weight_scale_inv": GRID}, config)
    assert (dequantized(tmp_path, "a.weight") == NUMBERS * SPREAD).all()
    config["vision_config"] = declared(quant_method="fp8", weight_block_size=[64, 64])
    if "." not in part:  # two parts that differ: which one a weight belongs to is not said
        write(tmp_path, {"a.weight": CODES, "a.weight_scale_inv": GRID}, config)
        assert "several in" in opened(tmp_path).note


# Modules that a quantiser excludes, in the base model's FP8.


@pytest.mark.parametrize(
    "method",
    [
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
        {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "config_groups": {
                "g": {"weights": {"num_bits": 4, "group_size": 16}, "targets": ["Linear"]}
            },
            "ignore": ["re:.*attn.*"],
        },
    ],
)
def test_excluded_modules_stay_in_fp8(tmp_path, method):
    e8m0 = np.array([[0.5, 1, 2], [4, 8, 16]]).astype(E8M0)
    arrays = {
        "x.attn.a.weight": CODES,
        "x.attn.a.weight_scale_inv": GRID,
        "x.attn.b.weight": CODES,
        "x.attn.b.scale": e8m0,
        "x.attn.c.weight": CODES,  # whose scale is not there
        "x.attn.d.weight": CODES,
        "x.attn.d.weight_scale_inv": GRID[:1],  # of no block that anyone has
    }
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, declared(**method)))
    assert (checkpoint.tensor("x.attn.a.weight").dequantize() == NUMBERS * SPREAD).all()
    powers = np.repeat(np.repeat(e8m0.astype(np.float32), 128, 0), 128, 1)[:130, :257]
    assert (checkpoint.tensor("x.attn.b.weight").dequantize() == NUMBERS * powers).all()
    assert "no weight_scale" in checkpoint.tensor("x.attn.c.weight").note
    assert "expected [2, 3]" in checkpoint.tensor("x.attn.d.weight").note


@pytest.mark.parametrize("scale", ["a.weight_scale_inv", "a.scale"])
def test_experts_that_were_made_nvfp4_afterwards(tmp_path, scale):
    blocks = RNG.integers(0, 256, (4, 16)).astype(np.uint8)
    levels = RNG.random((4, 2)).astype(E4M3)
    arrays = {
        "a.weight": CODES,
        scale: GRID.astype(E8M0),
        "experts.0.w1.weight": blocks,
        "experts.0.w1.weight_scale": levels,
        "experts.0.w1.weight_scale_2": HALF,
        "experts.0.w1.input_scale": HALF,
    }
    keys = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, declared(**keys)))
    assert checkpoint.notes == ()
    assert checkpoint.tensor("a.weight").format == "FP8_BLOCK"
    tensor = checkpoint.tensor("experts.0.w1.weight")
    assert (tensor.format, tensor.shape) == ("NVFP4", (4, 32))
    codes = formats.FP4_E2M1.decode(formats.unpack(blocks, 4))
    factor = np.repeat(levels.astype(np.float32) * np.float32(0.5), 16, 1)
    assert (tensor.dequantize() == codes * factor).all()
    # Without the second level its scales are still no weights.
    del arrays["experts.0.w1.weight_scale_2"]
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, declared(**keys)))
    assert "experts.0.w1.weight:" in checkpoint.notes[0]
    assert checkpoint.tensor("experts.0.w1.weight_scale").auxiliary


def test_modelopts_fp8_block_scales(tmp_path):
    layers = {"mtp.experts": {"quant_algo": "FP8_BLOCK_SCALES", "group_size": 128}}
    keys = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    for scale in ("weight_scale", "weight_scale_inv"):
        arrays = {"mtp.experts.0.up.weight": CODES, f"mtp.experts.0.up.{scale}": GRID}
        write(tmp_path, arrays, declared(quant_method="modelopt", **keys))
        assert (dequantized(tmp_path, "mtp.experts.0.up.weight") == NUMBERS * SPREAD).all()


# compressed-tensors.


def ct(form: str, **weights) -> dict:
    group = {"weights": {"num_bits": 8, **weights}, "targets": ["Linear"], "format": form}
    return declared(quant_method="compressed-tensors", config_groups={"g": group})


def test_zero_points_of_symmetric_schemes_may_be_zeros(tmp_path):
    codes = RNG.integers(-128, 128, (4, 8)).astype(np.int8)
    arrays = {
        "a.weight": codes,
        "a.weight_scale": np.full((4, 1), 0.5, np.float32),
        "a.weight_zero_point": np.zeros((4, 1), np.int8),
    }
    config = ct("int-quantized", type="int", strategy="channel", symmetric=True)
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, config))
    assert checkpoint.names() == ["a.weight"]
    assert (checkpoint.tensor("a.weight").dequantize() == codes * 0.5).all()
    fp8 = {
        "a.weight": CODES,
        "a.weight_scale": np.full(1, 0.5, BF16),
        "a.weight_zero_point": np.zeros(1, E4M3),
    }
    config = ct("float-quantized", type="float", strategy="tensor", symmetric=True)
    assert (dequantized(write(tmp_path, fp8, config), "a.weight") == NUMBERS * 0.5).all()
    fp8["a.weight_zero_point"] = np.ones(1, E4M3)
    assert "zero points" in opened(write(tmp_path, fp8, config)).note


@pytest.mark.parametrize(("word", "is_zero"), [(0x88888888, True), (0, False), (0x8888888F, False)])
def test_packed_zero_points_of_symmetric_schemes(tmp_path, word, is_zero):
    codes = RNG.integers(0, 16, (8, 64)).astype(np.uint8)
    arrays = {
        "a.weight_packed": formats.pack(codes, 4, np.int32),
        "a.weight_shape": np.array([8, 64]),
        "a.weight_scale": np.full((8, 2), 0.5, BF16),
        "a.weight_zero_point": np.full((1, 2), word, np.uint32).view(np.int32),
    }
    keys = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, ct("pack-quantized", **keys)))
    name = "a.weight" if is_zero else "a.weight_packed"
    assert checkpoint.tensor(name).format == ("INT4" if is_zero else "RAW")


def test_fused_experts(tmp_path):
    codes = RNG.integers(0, 16, (3, 8, 64)).astype(np.uint8)
    scale = RNG.random((3, 8, 2)).astype(BF16)
    arrays = {
        "experts.gate_up_proj_packed": formats.pack(codes, 4, np.int32),
        "experts.gate_up_proj_scale": scale,
        "experts.gate_up_proj_shape": np.array([3, 8, 64]),
    }
    keys = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    write(tmp_path / "c", arrays, ct("pack-quantized", **keys))
    found = dequantized(tmp_path / "c", "experts.gate_up_proj")
    expected = (codes.astype(np.float32) - 8) * np.repeat(scale.astype(np.float32), 32, 2)
    assert (found == expected).all()
    survives(tmp_path / "c", tmp_path)


def test_i8_that_is_said_to_be_floats_is_raw(tmp_path):
    arrays = {"a.weight": np.ones((4, 8), np.int8), "a.weight_scale": np.ones((4, 1), BF16)}
    write(tmp_path, arrays, ct("naive-quantized", type="float", strategy="channel"))
    assert "type 'float'" in opened(tmp_path).note


# GPTQ, AWQ, AutoRound.


def test_gptqs_dynamic_settings(tmp_path):
    arrays = {}
    for module, bits, group in (("m.0.up", 4, 32), ("m.1.up", 8, 64), ("m.2.up", 4, 32)):
        own = gptq(16, 64, bits, group)
        arrays.update({name.replace("a.", f"{module}."): v for name, v in own.items()})
    dynamic = {r"+:m\.1\..*": {"bits": 8, "group_size": 64}, r"-:m\.2": {}}
    keys = {"bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2", "dynamic": dynamic}
    write(tmp_path, arrays, declared(quant_method="gptq", **keys))
    checkpoint = jentropy.open_checkpoint(tmp_path)
    assert checkpoint.tensor("m.0.up.weight").format == "INT4"
    assert checkpoint.tensor("m.1.up.weight").format == "INT8"
    assert checkpoint.tensor("m.1.up.weight").number_format.parameters[0].block == (64,)
    assert "excludes it" in checkpoint.tensor("m.2.up.qweight").note
    keys["dynamic"] = {"+:(": {}}
    write(tmp_path, arrays, declared(quant_method="gptq", **keys))
    assert "dynamic" in jentropy.open_checkpoint(tmp_path).notes[0]


def test_awq_without_zero_points_is_raw(tmp_path):
    arrays = {
        "a.qweight": np.zeros((64, 4), np.int32),
        "a.scales": np.ones((1, 32), np.float16),
        "norm.weight": np.ones(4, BF16),
    }
    keys = {"bits": 4, "group_size": 64, "zero_point": False, "version": "gemm"}
    checkpoint = jentropy.open_checkpoint(
        write(tmp_path, arrays, declared(quant_method="awq", **keys))
    )
    assert "no qzeros" in checkpoint.tensor("a.qweight").note
    assert checkpoint.tensor("a.scales").auxiliary
    assert jentropy.analyze(tmp_path).weights == 4


def test_autoround_packs_as_others_do(tmp_path):
    arrays = {}
    for module, bits in (("m.up", 4), ("m.down", 8), ("m.gate", 4)):
        own = gptq(16, 64, bits, 32)
        del own["a.g_idx"]
        arrays.update({name.replace("a.", f"{module}."): v for name, v in own.items()})
    arrays["m.gate.qzeros"] = np.zeros(0, np.int32)
    keys = {
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "data_type": "int",
        "packing_format": "auto_round:auto_gptq",
        "extra_config": {".*down": {"bits": 8}},
    }
    write(tmp_path / "a", arrays, declared(quant_method="auto-round", **keys))
    twin = {k: v for k, v in arrays.items() if not k.startswith("m.gate")}
    dynamic = {"+:m.down": {"bits": 8}}
    write(tmp_path / "b", twin, declared(quant_method="gptq", dynamic=dynamic, **keys))
    for name in ("m.up.weight", "m.down.weight"):
        assert (dequantized(tmp_path / "a", name) == dequantized(tmp_path / "b", name)).all()
    codes = formats.unpack(arrays["m.gate.qweight"], 4, axis=0).T.astype(np.float32) - 8
    scale = np.repeat(arrays["m.gate.scales"].T.astype(np.float32), 32, 1)
    assert (dequantized(tmp_path / "a", "m.gate.weight") == codes * scale).all()
    survives(tmp_path / "a", tmp_path)
    keys["packing_format"] = "auto_round"
    write(tmp_path / "a", arrays, declared(quant_method="auto-round", **keys))
    assert "packing_format" in jentropy.open_checkpoint(tmp_path / "a").notes[0]


# MLX, Quark, Mistral, ComfyUI.


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlxs_affine_groups(tmp_path, bits):
    codes = RNG.integers(0, 1 << bits, (6, 128)).astype(np.uint8)
    scales, biases = (RNG.standard_normal((6, 2)).astype(np.float16) for _ in range(2))
    arrays = {
        "m.up.weight": formats.pack(codes, bits, np.uint32),
        "m.up.scales": scales,
        "m.up.biases": biases,
        "m.norm.weight": np.ones(8, BF16),
    }
    told = {"group_size": 64, "bits": 4, "mode": "affine", "m.up": {"bits": bits}}
    folder = write(tmp_path / "c", arrays, {"quantization": told, "quantization_config": told})
    tensor = opened(folder, "m.up.weight")
    assert (tensor.format, tensor.dialect) == (f"INT{bits}", "mlx")
    wide = [np.repeat(part.astype(np.float32), 64, 1) for part in (scales, biases)]
    assert (tensor.dequantize() == codes * wide[0] + wide[1]).all()
    assert jentropy.open_checkpoint(folder).notes == ()
    survives(folder, tmp_path)


def test_other_modes_of_mlx_are_raw(tmp_path):
    arrays = {"a.weight": np.zeros((4, 8), np.uint32), "a.scales": np.zeros((4, 2), np.uint8)}
    told = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    assert "mode 'mxfp4'" in opened(write(tmp_path, arrays, {"quantization": told})).note


def test_quarks_schemes(tmp_path):
    blocks = RNG.integers(0, 256, (4, 32)).astype(np.uint8)
    scale = RNG.integers(120, 130, (4, 2)).astype(np.uint8)
    arrays = {
        "m.experts.0.weight": blocks,
        "m.experts.0.weight_scale": scale,
        "m.attn.q.weight": CODES,
        "m.attn.q.weight_scale": HALF,
        "m.out.weight": CODES,
        "m.out.weight_scale": ROWS[:, 0],
    }
    config = {
        "global_quant_config": {
            "weight": {
                "dtype": "fp4",
                "qscheme": "per_group",
                "group_size": 32,
                "scale_format": "e8m0",
            }
        },
        "layer_quant_config": {
            "*attn*": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
            "m.out": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}},
        },
    }
    folder = write(tmp_path / "c", arrays, declared(quant_method="quark", **config))
    codes = formats.FP4_E2M1.decode(formats.unpack(blocks, 4))
    powers = np.repeat(2.0 ** (scale.astype(np.float32) - 127), 32, 1)
    assert (dequantized(folder, "m.experts.0.weight") == codes * powers).all()
    assert (dequantized(folder, "m.attn.q.weight") == NUMBERS * 0.5).all()
    assert (dequantized(folder, "m.out.weight") == NUMBERS * ROWS).all()
    survives(folder, tmp_path)
    config["layer_type_quant_config"] = {"Linear": config["global_quant_config"]}
    write(folder, arrays, declared(quant_method="quark", **config))
    assert "layer_type_quant_config" in opened(folder, "m.experts.0.weight").note


def test_mistrals_own_fp8(tmp_path):
    arrays = {
        "layers.0.wq.weight": CODES,
        "layers.0.wq.qscale_weight": HALF,
        "layers.0.wq.qscale_act": HALF,
        "norm.weight": np.ones(4, BF16),
    }
    told = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    folder = write(tmp_path / "c", arrays, params=told)
    assert (dequantized(folder, "layers.0.wq.weight") == NUMBERS * 0.5).all()
    assert opened(folder, "layers.0.wq.qscale_act").auxiliary
    survives(folder, tmp_path)
    jentropy.compress_checkpoint(folder / "model.safetensors", tmp_path / "single")
    assert opened(tmp_path / "single", "layers.0.wq.weight").dialect == "mistral"


@pytest.mark.parametrize("kind", ["old", "told by arrays", "told by metadata"])
def test_comfys_scaled_fp8(tmp_path, kind):
    told = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    layer, scale, metadata = "blocks.0.q", "weight_scale", {}
    arrays = {f"{layer}.weight": CODES, "norm.weight": np.ones(4, BF16)}
    if kind == "old":
        scale = "scale_weight"
        arrays |= {f"{layer}.scale_input": HALF, "scaled_fp8": np.zeros(2, E4M3)}
    elif kind == "told by arrays":
        arrays[f"{layer}.comfy_quant"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    else:
        metadata = {"_quantization_metadata": json.dumps({"layers": {layer: told}})}
    arrays[f"{layer}.{scale}"] = HALF
    folder = write(tmp_path / "c", arrays, metadata=metadata)
    tensor = opened(folder, f"{layer}.weight")
    assert (tensor.format, tensor.dialect) == ("FP8_E4M3", "comfy")
    assert (tensor.dequantize() == NUMBERS * 0.5).all()
    assert jentropy.analyze(folder).weights == CODES.size + 4
    survives(folder, tmp_path)


def test_what_comfy_rotates_is_raw(tmp_path):
    told = {"format": "float8_e4m3fn", "convrot": True}
    arrays = {
        "a.weight": CODES,
        "a.weight_scale": HALF,
        "a.comfy_quant": np.frombuffer(json.dumps(told).encode(), np.uint8),
        "b.weight": np.ones((4, 8), np.int8),
        "b.weight_scale": np.ones((4, 1), np.float32),
        "b.comfy_quant": np.frombuffer(b'{"format": "int8_tensorwise"}', np.uint8),
    }
    write(tmp_path, arrays)
    assert "with convrot" in opened(tmp_path).note
    assert "int8_tensorwise" in opened(tmp_path, "b.weight").note


HOSTILE = {
    "mlx": {"quantization": {"bits": "4", "group_size": 32}},
    "autoround": declared(quant_method="auto-round", bits=4, extra_config={"(": {}}),
    "autoround bits": declared(quant_method="auto-round", bits=[4], packing_format="gptq"),
    "quark": declared(quant_method="quark", layer_quant_config=[], global_quant_config=3),
    "gptq": declared(quant_method="gptq", bits=4, group_size=32, dynamic=[3]),
    "mistral": declared(quant_method="mistral", qformat_weight=4),
    "a part": {"llm_config": declared(quant_method=["fp8"])},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configs_are_notes(name, tmp_path):
    arrays = {
        "a.weight": np.zeros((4, 8), np.uint32 if name == "mlx" else E4M3),
        "a.weight_scale": np.zeros((3, 5), np.float16),
        "b.qweight": np.zeros((4, 8), np.int32),
        "b.scales": np.zeros((3, 5), np.float16),
        "b.qzeros": np.zeros((1, 1), np.int32),
        "norm.weight": np.ones(8, BF16),
    }
    checkpoint = jentropy.open_checkpoint(write(tmp_path, arrays, HOSTILE[name], params=[1]))
    assert checkpoint.tensor("a.weight").note
    assert checkpoint.tensor("b.qweight").note
    assert "cannot read it" not in "".join(checkpoint.notes)
    assert checkpoint.tensor("norm.weight").format == "BF16"
    metadata = {"_quantization_metadata": "{"}
    assert "not JSON" in opened(write(tmp_path / "c", arrays, metadata=metadata)).note


# GGUF of the other byte order.


def test_big_endian_gguf(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="extra gguf is not installed")
    kinds = ("Q8_0", "Q4_K", "MXFP4", "Q5_0")
    numbers = RNG.standard_normal((3, 8)).astype(np.float32)
    made = {}
    for order, endian in (("big", gguf.GGUFEndian.BIG), ("little", gguf.GGUFEndian.LITTLE)):
        writer = gguf.GGUFWriter(tmp_path / f"{order}.gguf", "llama", endianess=endian)
        for kind in kinds:
            quant = gguf.GGMLQuantizationType[kind]
            weights, size = gguf.GGML_QUANT_SIZES[quant]
            rows = np.random.default_rng(1).integers(0, 60, (3, 512 // weights * size))
            rows = rows.astype(np.uint8).reshape(-1, size)
            halves = {"Q8_0": 1, "Q4_K": 2}.get(kind, 0)
            if order == "big":
                for i in range(0, 2 * halves, 2):
                    rows[:, i : i + 2] = rows[:, i : i + 2][:, ::-1].copy()
            writer.add_tensor(kind, rows.reshape(3, -1), raw_dtype=quant)
        for dtype in ("f4", "f2", "i4", "i1"):
            writer.add_tensor(dtype, numbers.astype(dtype))  # the writer turns it
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        made[order] = jentropy.open_checkpoint(tmp_path / f"{order}.gguf")
    big, little = made["big"], made["little"]
    jentropy.compress_checkpoint(tmp_path / "big.gguf", tmp_path / "dst")
    assert jentropy.verify(tmp_path / "dst", against=tmp_path / "big.gguf").compared
    for checkpoint in (big, jentropy.open_checkpoint(tmp_path / "dst")):
        assert checkpoint.names() == little.names()
        for tensor, codes in checkpoint.read_all():
            expected = little.tensor(tensor.name)
            assert (tensor.format, tensor.shape) == (expected.format, expected.shape)
            if tensor.name != "Q5_0":  # unknown: its bytes as they are
                for key, array in expected.codes.items():
                    assert (codes[key] == array).all(), (tensor.name, key)
        assert "Q5_0 big-endian" in checkpoint.tensor("Q5_0").note
    whole = jentropy.analyze(tmp_path / "dst")
    assert jentropy.inspect(tmp_path / "dst").weights == whole.weights
    read, rows = decoding.read_block_rows, []
    monkeypatch.setattr(slabs, "LARGE", 1 << 8)
    monkeypatch.setattr(slabs, "WEIGHTS", 1 << 9)  # of a row
    monkeypatch.setattr(slabs, "AHEAD", 1)
    monkeypatch.setattr(archived, "read_block_rows", lambda *a: (rows.append(a[2][0]), read(*a))[1])
    expected = whole.to_json()["tensors"]
    for path in ("dst", "big.gguf"):
        assert jentropy.analyze(tmp_path / path).to_json()["tensors"] == expected
    assert rows.count(slice(1, 2)) == 4, "once for each array of blocks"


def test_derivatives_of_quantize_are_an_error():
    import jax
    import jax.numpy as jnp

    def rounded(x):
        return jentropy.dequantize(formats.MXFP8, jentropy.quantize(x, formats.MXFP8))

    x = jnp.linspace(-1, 1, 64)
    for function in (jax.grad(lambda x: rounded(x).sum()), jax.jit(jax.jacfwd(rounded))):
        with pytest.raises(InputError, match=r"derivative of quantize.*stop_gradient"):
            function(x)

    def straight_through(x):
        return (x + jax.lax.stop_gradient(rounded(jax.lax.stop_gradient(x)) - x)).sum()

    assert (jax.grad(straight_through)(x) == 1).all()
    assert jax.vmap(rounded)(x[None]).shape == (1, 64)
