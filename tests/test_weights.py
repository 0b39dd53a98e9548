"""One weight type: what a dialect recognises, the index records, and a pytree passes on."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.checkpoints import DIALECTS
from jentropy.checkpoints.dialects import PLAIN
from jentropy.checkpoints.store import Store
from jentropy.checkpoints.unpacking import UNPACKINGS, StoredCodes
from jentropy.errors import CorruptError, InputError, UnsupportedError
from jentropy.formats import FORMATS, QuantizedTensor
from jentropy.formats.document import FORMAT

from .conftest import HERE, read_tree, same_tree
from .golden import make
from .golden.comparing import same_tensors
from .test_dialects import DOWN, FIXTURES, KEY, QUANTISED, arrays_of, declared, write, write_gguf

GOLDEN = HERE / "golden" / "valid"
CONFIGS = ("config.json", "hf_quant_config.json", "quantize_config.json")


def same(ours: jentropy.Checkpoint, theirs: jentropy.Checkpoint) -> None:
    """Whether two checkpoints have the same tensors, codes and notes."""
    assert sorted(ours.names()) == sorted(theirs.names())
    assert ours.notes == theirs.notes
    for name in theirs.names():
        a, b = ours.tensor(name), theirs.tensor(name)
        for attribute in ("format", "dialect", "shape", "dtype", "number_format", "auxiliary"):
            assert getattr(a, attribute) == getattr(b, attribute), (name, attribute)
        assert a.parts == b.parts
        theirs_codes = b.codes
        assert a.codes.keys() == theirs_codes.keys()
        for key, codes in a.codes.items():
            assert codes.dtype == theirs_codes[key].dtype
            assert codes.tobytes() == theirs_codes[key].tobytes(), (name, key)


def forget(patch: pytest.MonkeyPatch, name: str) -> None:
    """Makes a release that does not know a dialect."""
    unknown = replace(DIALECTS[name], methods=(), signs=lambda contents: False)
    patch.setitem(DIALECTS, name, unknown)


def without_configs(content: dict) -> None:
    """The index of a checkpoint whose configs have other names."""
    for file in content["files"]:
        if file["path"] in CONFIGS:
            file["path"] += ".gone"


@pytest.mark.parametrize("name", FIXTURES)
def test_what_was_recognised_is_read_without_config_or_dialect(name, tmp_path, monkeypatch):
    jentropy.compress_checkpoint(QUANTISED / name, tmp_path / "dst")
    theirs = jentropy.open_checkpoint(QUANTISED / name)
    same(jentropy.open_checkpoint(tmp_path / "dst"), theirs)
    make.edit_index(tmp_path / "dst", without_configs)
    for other in DIALECTS.keys() - {PLAIN}:
        forget(monkeypatch, other)
    ours = jentropy.open_checkpoint(tmp_path / "dst")
    assert ours.config is None
    same(ours, theirs)


def test_gguf_and_its_blocks_are_recorded(tmp_path, monkeypatch):
    write_gguf(tmp_path / "m.gguf", ["Q4_0", "Q8_0", "MXFP4", "Q4_K", "Q6_K"])
    jentropy.compress_checkpoint(tmp_path / "m.gguf", tmp_path / "dst")
    theirs = jentropy.open_checkpoint(tmp_path / "m.gguf")
    assert len(Store(tmp_path / "dst").index.weights) == 5
    forget(monkeypatch, "gguf")
    same(jentropy.open_checkpoint(tmp_path / "dst"), theirs)


def test_what_was_raw_is_looked_at_again(tmp_path, monkeypatch):
    source = QUANTISED / "gptq_v2"
    with monkeypatch.context() as patch:  # a release that does not know GPTQ
        forget(patch, "gptq")
        jentropy.compress_checkpoint(source, tmp_path / "dst")
        assert jentropy.open_checkpoint(tmp_path / "dst").tensor(f"{DOWN[:-6]}qweight").note
    assert Store(tmp_path / "dst").index.weights == ()
    same(jentropy.open_checkpoint(tmp_path / "dst"), jentropy.open_checkpoint(source))


def test_archives_that_record_nothing_are_read_as_before(tmp_path):
    source = QUANTISED / "awq_gemm"
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    make.edit_index(
        tmp_path / "dst", lambda content: [content.pop(k) for k in ("weights", "formats")]
    )
    same(jentropy.open_checkpoint(tmp_path / "dst"), jentropy.open_checkpoint(source))


def test_components_of_a_pipeline_may_have_weights_of_one_name(tmp_path):
    scale = np.full((1, 1), 0.5, np.float32)
    codes = np.ones((4, 8), ml_dtypes.float8_e4m3fn)
    config = declared(quant_method="fp8", weight_block_size=[128, 128])
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "model_index.json").write_text("{}")
    for n, folder in enumerate(("unet", "vae")):
        arrays = {"a.weight": codes, "a.weight_scale_inv": scale * (n + 1)}
        write(tmp_path / "p" / folder, arrays, config)
    jentropy.compress_checkpoint(tmp_path / "p", tmp_path / "dst")
    same(jentropy.open_checkpoint(tmp_path / "dst"), jentropy.open_checkpoint(tmp_path / "p"))
    ours = jentropy.open_checkpoint(tmp_path / "dst" / "vae")
    same(ours, jentropy.open_checkpoint(tmp_path / "p" / "vae"))
    assert (ours.tensor("a.weight").dequantize() == 1).all()


def test_a_file_in_an_archive_lacks_what_lies_in_others(tmp_path):
    arrays = arrays_of(QUANTISED / "dsv3_fp8_block")
    config = json.loads((QUANTISED / "dsv3_fp8_block" / "config.json").read_text())
    scales = {name: values for name, values in arrays.items() if "scale" in name}
    for number, part in enumerate((scales, {n: v for n, v in arrays.items() if n not in scales})):
        write(tmp_path / "s", part, config)
        (tmp_path / "s" / "model.safetensors").rename(
            tmp_path / "s" / f"model-{number + 1:05d}-of-00002.safetensors"
        )
    jentropy.compress_checkpoint(tmp_path / "s", tmp_path / "dst")
    same(jentropy.open_checkpoint(tmp_path / "dst"), jentropy.open_checkpoint(tmp_path / "s"))
    file = "model-00002-of-00002.safetensors"
    alone = jentropy.open_checkpoint(tmp_path / "dst" / file).tensor(DOWN)
    assert (alone.format, alone.note) == ("RAW", "their scales are not here")


# Records that contradict the arrays.

HOSTILE = {
    "dialect": ("gptq_v2", "dialect", "nobody", UnsupportedError, "found nobody of version 1"),
    "version": (
        "gptq_v2",
        "version",
        2,
        UnsupportedError,
        "gptq of version 1 or lower, found gptq",
    ),
    "shape": ("gptq_v2", "shape", [64, 64], CorruptError, "shape of .*qweight"),
    "transposed shape": ("gptq_v2", "shape", [128, 64], CorruptError, "shape of .*qweight"),
    "rank": ("gptq_v2", "shape", [64], CorruptError, "shape of .*qweight"),
    "no axes": ("gptq_v2", "shape", [], CorruptError, "1 axes or more"),
    "huge": ("gptq_v2", "shape", [1 << 30, 1 << 20], CorruptError, "shape of .*qweight"),
    "another array": ("gptq_v2", "parts.scale.array", 0, CorruptError, "dtype|shape"),
    "codes twice": ("gptq_v2", "parts.zero_point", {"array": 3}, CorruptError, "dtype"),
    "a part more": ("gptq_v2", "parts.offset", {"array": 3}, CorruptError, "parts of the weight"),
    "a part less": ("gptq_v2", "parts.scale", None, CorruptError, "parts of the weight"),
    "unpacking": ("gptq_v2", "parts.code.unpack", "zip", UnsupportedError, "recorded weight: "),
    "option": ("gptq_v2", "parts.code.seed", 3, CorruptError, "recorded weight: "),
    "axis": ("gptq_v2", "parts.code.axis", 7, CorruptError, "recorded weight: "),
    "axis true": ("gptq_v2", "parts.code.axis", True, CorruptError, "recorded weight: "),
    "other axis": ("gptq_v2", "parts.code.axis", None, CorruptError, "shape of .*qweight"),
    "add a text": ("gptq_v2", "parts.code.add", "1", CorruptError, "recorded weight: "),
    "add too much": ("gptq_v2", "parts.code.add", 1 << 32, CorruptError, "recorded weight: "),
    "flip too much": ("gptq_v2", "parts.scale.flip", 1 << 16, CorruptError, "shape of .*scales"),
    "order": ("awq_gemm", "parts.code.order", [0, 0, 1], CorruptError, "recorded weight: "),
    "order a number": ("awq_gemm", "parts.code.order", 5, CorruptError, "recorded weight: "),
    "short order": ("awq_gemm", "parts.code.order", [1, 0], CorruptError, "shape of .*qweight"),
    "no groups": (
        "gptq_v1_asym_act",
        "parts.group_index.groups",
        None,
        CorruptError,
        "recorded weight: ",
    ),
    "swizzled": ("ct_nvfp4a16", "parts.scale.unpack", "swizzled", CorruptError, "shape of .*scale"),
    "blocks": (
        "ct_nvfp4a16",
        "parts.code",
        {"array": 0, "unpack": "blocks", "packing": "Q4_0", "key": "code"},
        CorruptError,
        "recorded weight",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_records_that_contradict_the_arrays_are_one_clear_error(name, tmp_path):
    fixture, path, value, error, message = HOSTILE[name]
    jentropy.compress_checkpoint(QUANTISED / fixture, tmp_path / "dst")

    def edit(content: dict) -> None:
        node = content["weights"][0]
        *parents, last = path.split(".")
        for key in parents:
            node = node[key]
        node.pop(last, None)
        if value is not None:
            node[last] = value

    make.edit_index(tmp_path / "dst", edit)
    with pytest.raises(error, match=message) as raised:
        jentropy.open_checkpoint(tmp_path / "dst")
    assert "state/index" in str(raised.value)
    # The bytes are sound all the same.
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert read_tree(tmp_path / "out") == read_tree(QUANTISED / fixture)


def test_a_weight_of_an_older_dialect_is_read_as_it_was_recorded(tmp_path, monkeypatch):
    jentropy.compress_checkpoint(QUANTISED / "mo_fp8", tmp_path / "dst")
    changed = replace(DIALECTS["modelopt"], version=7, weight=lambda contents, array: None)
    monkeypatch.setitem(DIALECTS, "modelopt", changed)
    theirs = jentropy.open_checkpoint(tmp_path / "dst")
    assert theirs.tensor(DOWN).format == "FP8_E4M3"


def test_our_own_bugs_are_no_bad_input(tmp_path, monkeypatch):
    def broken(contents, array):
        raise KeyError("ours")

    monkeypatch.setitem(DIALECTS, "gptq", replace(DIALECTS["gptq"], weight=broken))
    with pytest.raises(KeyError, match="ours"):
        jentropy.open_checkpoint(QUANTISED / "gptq_v2")


# Lazy leaves.


def test_a_tensor_holds_a_quantised_weight_that_is_read_on_demand(monkeypatch):
    tensor = jentropy.open_checkpoint(QUANTISED / "gptoss_mxfp4").tensor(
        "model.layers.0.mlp.experts.down_proj"
    )
    weight = tensor.weight.check()
    assert isinstance(weight, QuantizedTensor)
    assert all(isinstance(leaf, StoredCodes) for leaf in jax.tree.leaves(weight))
    assert weight.shape == tensor.shape
    assert (weight.dequantize() == tensor.dequantize()).all()
    read = weight.in_memory()
    assert read.codes.keys() == tensor.codes.keys()
    assert all((read.codes[key] == codes).all() for key, codes in tensor.codes.items())


def test_weights_of_a_checkpoint_go_into_pytrees_as_they_are(tmp_path):
    checkpoint = jentropy.open_checkpoint(QUANTISED / "ct_w4a16_g32_asym")
    tensor = checkpoint.tensor(DOWN)
    for held in (tensor, tensor.weight):
        packed = jentropy.compress({"w": held})
        assert isinstance(packed["w"], QuantizedTensor)
        jentropy.save(tmp_path / type(held).__name__, packed)
        again = jentropy.decompress(jentropy.load(tmp_path / type(held).__name__))["w"]
        assert again.number_format == tensor.number_format
        assert (again.dequantize() == tensor.dequantize()).all()
        report = jentropy.analyze({"w": held})
        assert report.weights == np.prod(tensor.shape)
        resident = jentropy.to_resident({"w": held}, backend="reference")["w"]
        assert isinstance(resident, jentropy.ResidentTensor)
        values = np.asarray(jentropy.decode(resident, jnp.float32))
        assert (values == tensor.dequantize()).all()


# Quantised pytrees.


def quantised(name: str) -> QuantizedTensor:
    values = jax.random.normal(jax.random.key(0), (128, 256), jnp.float32)
    number_format = FORMATS[name]
    return QuantizedTensor(
        number_format=number_format, codes=formats.quantize(values, number_format)
    )


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.parameters])
def test_quantised_pytrees_keep_their_meaning(name, tmp_path):
    weight = quantised(name)
    tree = {"layers": [{"w": weight}], "b": jnp.ones(256), "step": 3}
    packed = jentropy.compress(tree)
    jentropy.save(tmp_path / "dst", packed)
    loaded = jentropy.load(tmp_path / "dst")
    assert loaded["layers"][0]["w"].number_format == weight.number_format
    again = jentropy.decompress(loaded)["layers"][0]["w"]
    assert isinstance(again, QuantizedTensor)
    assert again.number_format == weight.number_format
    for key, codes in weight.codes.items():
        assert (again.codes[key] == codes).all()
    x = jax.random.normal(jax.random.key(1), (3, 256), jnp.float32)
    expected, found = (
        jentropy.matmul(
            x,
            jentropy.to_resident(t, backend="reference")["layers"][0]["w"],
            transpose_w=True,
        )
        for t in (tree, loaded)
    )
    assert (expected == found).all()
    checked = jentropy.verify(tmp_path / "dst")
    assert checked.tensors == len(weight.codes) + 1


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.parameters])
def test_analysis_sees_the_format_of_quantised_pytrees(name, tmp_path):
    weight = quantised(name)
    tree = {"w": weight, "n": np.ones(8, np.float16)}
    jentropy.save(tmp_path / "dst", jentropy.compress(tree))
    for source in (
        tree,
        jentropy.compress(tree),
        jentropy.load(tmp_path / "dst"),
        tmp_path / "dst",
    ):
        report = jentropy.analyze(source)
        assert report.weights == 128 * 256 + 8
        assert report.formats[name].weights == 128 * 256
        row = {t.name: t for t in report.tensors}["w"]
        assert (row.format, row.shape) == (name, (128, 256))
    saved = jentropy.open_checkpoint(tmp_path / "dst")
    assert sorted(saved.names()) == ["n", "w"]
    assert (saved.tensor("w").dequantize() == np.asarray(weight.dequantize())).all()
    assert jentropy.inspect(tmp_path / "dst").weights == 128 * 256 + 8
    assert report.formats[name].allocated_bits == weight.number_format.allocated_bits((128, 256))


def test_codes_of_a_saved_tree_that_are_not_their_formats_are_refused(tmp_path):
    jentropy.save(tmp_path / "dst", {"w": quantised("MXFP4")})
    expected = jentropy.open_checkpoint(tmp_path / "dst").tensor("w").dequantize()
    assert expected.shape == (128, 256)

    def edit(content: dict) -> None:
        content["formats"][0]["parameters"][0]["block"] = [16]

    make.edit_index(tmp_path / "dst", edit)
    with pytest.raises(
        CorruptError, match=r"tensor 'w': recorded weight: shape of w\.codes\.scale"
    ):
        jentropy.open_checkpoint(tmp_path / "dst")


def test_codes_that_are_not_what_the_format_says_are_refused():
    weight = quantised("MXFP4")
    scale = weight.codes["scale"]
    for codes in (
        {"code": weight.codes["code"]},
        {**weight.codes, "scale": scale[:, :1]},
        {**weight.codes, "scale": scale.astype(jnp.uint16)},
        {**weight.codes, "more": scale},
        {**weight.codes, "code": weight.codes["code"][0, 0]},
    ):
        broken = QuantizedTensor(number_format=weight.number_format, codes=codes)
        with pytest.raises(CorruptError, match=r"tensor 'a\.w'.*codes"):
            jentropy.analyze({"a": {"w": broken}})


# Golden files.


def test_the_golden_pytree_of_quantised_weights_is_read_and_written_as_it_was(tmp_path):
    golden, expected = GOLDEN / "quantised", make.quantised()
    assert same_tree(jentropy.decompress(jentropy.load(golden)), expected)
    jentropy.save(tmp_path / "again", expected)
    stores = Store(golden), Store(tmp_path / "again")
    same_tensors(*stores, cheaper={"bias"})  # since planes are judged with their heads
    before, now = (json.loads(zlib.decompress(s.array("index").tobytes())) for s in stores)
    assert (before.pop("jentropy"), now.pop("jentropy")) == (1, 2)
    for what in ("bundles", "tensors"):
        assert before.pop(what) != now.pop(what)
    assert before == now


def test_the_golden_checkpoint_of_recorded_weights_is_read_as_it_was(tmp_path, monkeypatch):
    golden, source = GOLDEN / make.RECORDED, QUANTISED / make.RECORDED
    theirs = jentropy.open_checkpoint(source)
    jentropy.compress_checkpoint(source, tmp_path / "again")
    ours, again = Store(golden).index, Store(tmp_path / "again").index
    assert ours.weights == again.weights
    assert ours.formats == again.formats
    assert len(ours.weights) == 2
    forget(monkeypatch, "gptq")
    same(jentropy.open_checkpoint(golden), theirs)


# The table and the documents.


def test_every_unpacking_is_one_that_some_dialect_uses(tmp_path):
    write_gguf(tmp_path / "m.gguf", ["Q8_0"])
    sources = [*(QUANTISED / name for name in FIXTURES), tmp_path / "m.gguf"]
    used = set()
    for source in sources:
        checkpoint = jentropy.open_checkpoint(source)
        for name in checkpoint.names():
            used |= {type(leaf.unpacking) for leaf in checkpoint.tensor(name).stored.values()}
    assert used == {kind for kind, _ in UNPACKINGS.values()}


@pytest.mark.parametrize("name", [*FORMATS, "int3", "raw"])
def test_formats_come_back_from_their_documents(name):
    element = formats.ElementFormat(
        name="UINT3", dtype=np.dtype(np.uint8), fields=(formats.Field(name="code", bits=3),)
    )
    others = {
        "int3": FORMATS["INT4"].with_element(element),
        "raw": formats.plain_format(np.dtype(np.int16)),
    }
    number_format = {**FORMATS, **others}[name]
    text = json.dumps(FORMAT.write(number_format))
    assert FORMAT.read(json.loads(text)) == number_format


HOSTILE_FORMATS = {
    "no object": (3, CorruptError),
    "no name": ({"element": "BF16"}, CorruptError),
    "element": ({"name": "X", "element": "FP5"}, UnsupportedError),
    "element a list": ({"name": "X", "element": []}, CorruptError),
    "fields": (
        {"name": "X", "element": {"name": "E", "dtype": "uint8", "fields": {}}},
        CorruptError,
    ),
    "bits": (
        {"name": "X", "element": {"name": "E", "dtype": "uint8", "fields": {"code": 10**9}}},
        CorruptError,
    ),
    "dtype": (
        {"name": "X", "element": {"name": "E", "dtype": "object", "fields": {"code": 8}}},
        UnsupportedError,
    ),
    "block": (
        {
            "name": "X",
            "element": "INT8",
            "parameters": [{"name": "s", "field": "scale", "element": "BF16", "block": [-1]}],
        },
        CorruptError,
    ),
    "role": (
        {
            "name": "X",
            "element": "INT8",
            "parameters": [
                {"name": "s", "field": "scale", "element": "BF16", "block": None, "role": "x"}
            ],
        },
        UnsupportedError,
    ),
    "of": (
        {
            "name": "X",
            "element": "INT8",
            "parameters": [
                {"name": "s", "field": "scale", "element": "BF16", "block": None, "of": "y"}
            ],
        },
        CorruptError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE_FORMATS)
def test_hostile_documents_are_refused(name):
    document, error = HOSTILE_FORMATS[name]
    with pytest.raises(error):
        FORMAT.read(document)


def test_the_groups_of_columns_come_back_and_are_held_to_their_number(tmp_path):
    source = QUANTISED / "gptq_v1_asym_act"
    weight = jentropy.open_checkpoint(source).tensor(KEY).weight
    jentropy.save(tmp_path / "dst", {"w": weight})
    saved = jentropy.open_checkpoint(tmp_path / "dst").tensor("w")
    assert (saved.dequantize() == weight.dequantize()).all()
    broken = weight.in_memory()
    broken.codes[formats.GROUP_INDEX] = np.full_like(broken.codes[formats.GROUP_INDEX], 99)
    jentropy.save(tmp_path / "broken", {"w": broken})
    with pytest.raises(InputError, match="group indices: expected 0 to 3, found 99 to 99"):
        jentropy.open_checkpoint(tmp_path / "broken").tensor("w").dequantize()
