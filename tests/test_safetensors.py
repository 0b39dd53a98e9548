"""Reading safetensors, and refusing what is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import safetensors
from jentropy.errors import CorruptError, InputError, TruncatedError, UnsupportedError


def header_bytes(header) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, header, data=b"") -> None:
    path.write_bytes(header_bytes(header) + data)


@pytest.mark.parametrize("dtype", safetensors.DTYPES)
def test_every_dtype_is_read(tmp_path, dtype):
    file = tmp_path / "a.safetensors"
    bits, array_dtype = safetensors.DTYPES[dtype]
    size = 4 * 8 * bits // 8
    data = bytes(np.random.default_rng(0).integers(0, 2, size, dtype=np.uint8))
    write(file, {"w": entry(dtype, (4, 8), (0, size))}, data)
    (array,) = safetensors.read(file).arrays
    values = array.read()
    assert values.tobytes() == data
    assert values.dtype == array.dtype == array_dtype
    # What is narrower than a byte is bytes.
    assert values.shape == array.shape == ((4, 8) if 8 * array_dtype.itemsize == bits else (size,))


def test_values_agree_with_the_safetensors_package(fixtures):
    official = pytest.importorskip("safetensors.flax", reason="extra train is not installed")
    file = fixtures / "llama_bf16" / "model.safetensors"
    expected = official.load_file(file)
    found = safetensors.read(file).arrays
    assert {array.name for array in found} == set(expected)
    for array in found:
        assert array.read().tobytes() == np.asarray(expected[array.name]).tobytes()


def test_empty_tensors_scalars_and_space_padding(tmp_path):
    file = tmp_path / "a.safetensors"
    header = {"s": entry("F32", (), (0, 4)), "e": entry("F16", (0, 3), (4, 4)), "__metadata__": {}}
    write(file, json.dumps(header).encode() + b"   ", b"\0\0\x80\x3f")
    checkpoint = jentropy.open_checkpoint(file)
    assert float(checkpoint.tensor("s").dequantize()) == 1.0
    assert checkpoint.tensor("e").values().shape == (0, 3)
    write(file, {"__metadata__": {"format": "pt"}})
    assert jentropy.open_checkpoint(file).names() == []


EIGHT = b"\0" * 8
BAD = {
    "empty file": (b"", TruncatedError, "expected at least 8 bytes, found 0 bytes"),
    "short length": (b"\1\0\0", TruncatedError, "found 3 bytes"),
    "length past the end": (
        (1000).to_bytes(8, "little") + b"{}",
        TruncatedError,
        "expected 1000 bytes, found 2 bytes",
    ),
    "length beyond the limit": (b"\xff" * 8, CorruptError, "at most 100000000"),
    "no JSON": (header_bytes(b"{'a'"), CorruptError, "no JSON"),
    "no UTF-8": (header_bytes(b"\xff\xfe{}"), CorruptError, "no JSON"),
    "deep JSON": (header_bytes(b"[" * 100_000), CorruptError, "no JSON"),
    "no object": (header_bytes([1]), CorruptError, "expected an object, found list"),
    "name twice": (
        header_bytes(b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"w":{}}'),
        CorruptError,
        "'w'",
    ),
    "unknown dtype": (header_bytes({"w": entry("Q3")}) + EIGHT, UnsupportedError, "'w'.*'Q3'"),
    "dtype no string": (header_bytes({"w": entry(None)}) + EIGHT, UnsupportedError, "None"),
    "dtype a list": (header_bytes({"w": entry(["BF16"])}) + EIGHT, UnsupportedError, "BF16"),
    "entry no object": (header_bytes({"w": 3}), CorruptError, "'w'"),
    "no offsets": (header_bytes({"w": {"dtype": "F32", "shape": [2]}}), CorruptError, "'w'"),
    "negative offset": (header_bytes({"w": entry(offsets=(-8, 0))}), CorruptError, "'w'"),
    "boolean shape": (header_bytes({"w": entry(shape=(True,))}), CorruptError, "'w'"),
    "float shape": (header_bytes({"w": entry(shape=(2.0,))}), CorruptError, "'w'"),
    "huge shape": (
        header_bytes({"w": entry(shape=(2**62, 2**62))}) + EIGHT,
        CorruptError,
        "'w'.*possible shape",
    ),
    "huge and empty": (
        header_bytes({"w": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}),
        CorruptError,
        "'w'.*possible shape",
    ),
    "enormous number": (
        header_bytes({"w": entry(shape=(10**4000,))}) + EIGHT,
        CorruptError,
        "'w'",
    ),
    "many dimensions": (header_bytes({"w": entry(shape=(1,) * 65)}) + EIGHT, CorruptError, "'w'"),
    "shape and offsets differ": (
        header_bytes({"w": entry(shape=(3,))}) + EIGHT,
        CorruptError,
        r"expected \[0, 12\] for F32 \[3\], found \[0, 8\]",
    ),
    "hole": (
        header_bytes({"a": entry(), "b": entry(offsets=(16, 24))}) + EIGHT * 3,
        CorruptError,
        r"'b'.*expected \[8, 16\]",
    ),
    "overlap": (
        header_bytes({"a": entry(), "b": entry(offsets=(4, 12))}) + EIGHT * 2,
        CorruptError,
        "'b'",
    ),
    "truncated buffer": (
        header_bytes({"w": entry()}) + b"\0" * 7,
        TruncatedError,
        "'w'.*found .* bytes",
    ),
    "bytes left over": (
        header_bytes({"w": entry()}) + b"\0" * 9,
        CorruptError,
        "expected 8 bytes, found 9 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path, name):
    content, error, message = BAD[name]
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        safetensors.read(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(error):
        jentropy.compress_checkpoint(file, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.safetensors"]


def test_sources_that_are_no_checkpoint(tmp_path, fixtures):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        "nothing there": (tmp_path / "none", "no such file"),
        "empty directory": (empty, "no checkpoint"),
    }
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        file = tmp_path / suffix / f"pytorch_model{suffix}"
        file.parent.mkdir()
        file.write_bytes(b"\x80\x04.")
        cases[f"file {suffix}"] = (file, f"pickled weights.*found {suffix}")
        cases[f"directory {suffix}"] = (file.parent, f"pickled weights.*found {suffix}")
    for name, (path, message) in cases.items():
        with pytest.raises(InputError, match=message):
            jentropy.open_checkpoint(path)
        with pytest.raises(InputError, match=message):
            jentropy.compress_checkpoint(path, tmp_path / "out")
        assert not (tmp_path / "out").exists(), name
    with pytest.raises(UnsupportedError, match=r"expected a \.safetensors or \.gguf file"):
        jentropy.open_checkpoint(fixtures / "llama_bf16" / "config.json")


def copy_sharded(fixtures, tmp_path):
    import shutil

    folder = tmp_path / "sharded"
    shutil.copytree(fixtures / "qwen3_bf16_sharded", folder)
    return folder, folder / "model.safetensors.index.json"


def test_shards_are_one_checkpoint(fixtures):
    sharded = jentropy.open_checkpoint(fixtures / "qwen3_bf16_sharded")
    index = json.loads(
        (fixtures / "qwen3_bf16_sharded" / "model.safetensors.index.json").read_text()
    )
    assert sorted(sharded.names()) == sorted(index["weight_map"])


def test_an_open_checkpoint_is_analysed_as_its_path_is(fixtures):
    folder = fixtures / "llama_bf16"
    by_path, opened = (
        jentropy.analyze(s, contexts=False) for s in (folder, jentropy.open_checkpoint(folder))
    )
    assert opened.to_json() == by_path.to_json()


def test_a_missing_shard_names_itself_and_a_tensor(fixtures, tmp_path):
    folder, index = copy_sharded(fixtures, tmp_path)
    (folder / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json.*'model\..*00003-of-00004") as raised:
        jentropy.open_checkpoint(folder)
    assert str(index) in str(raised.value)


def test_what_an_index_gets_wrong_is_noted_and_a_damaged_one_refused(fixtures, tmp_path):
    folder, index = copy_sharded(fixtures, tmp_path)
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    shard = content["weight_map"].pop(name)
    content["weight_map"]["ghost"] = shard
    index.write_text(json.dumps(content))
    checkpoint = jentropy.open_checkpoint(folder)
    assert sorted(checkpoint.names()) == sorted(content["weight_map"].keys() - {"ghost"})
    assert any("names ghost, which no file has" in note for note in checkpoint.notes)
    assert any(f"holds {name}, which" in note for note in checkpoint.notes)
    for bad in ("", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{"):
        index.write_text(bad)
        with pytest.raises(CorruptError, match=r"index\.json"):
            jentropy.open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(InputError, match="missing shard"):
        jentropy.open_checkpoint(folder)


def test_a_tensor_in_two_files_without_an_index_is_refused(fixtures, tmp_path):
    folder, index = copy_sharded(fixtures, tmp_path)
    index.unlink()
    first = folder / "model-00001-of-00004.safetensors"
    (folder / "copy.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="tensor in two files"):
        jentropy.open_checkpoint(folder)


def test_a_directory_without_config_is_a_checkpoint(fixtures, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(
        (fixtures / "llama_fp16" / "model.safetensors").read_bytes()
    )
    checkpoint = jentropy.open_checkpoint(tmp_path)
    assert checkpoint.config is None
    assert {checkpoint.tensor(n).format for n in checkpoint.names()} == {"FP16"}


def test_tensors_tell_what_they_are(fixtures):
    checkpoint = jentropy.open_checkpoint(fixtures / "llama_bf16")
    tensor = checkpoint.tensor("lm_head.weight")
    assert (tensor.format, tensor.dialect, tensor.shape) == ("BF16", "plain", (256, 128))
    codes = tensor.codes["code"]
    assert codes.dtype == np.uint16
    widened = (codes.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(tensor.dequantize(np.float32), widened)
    with pytest.raises(InputError, match="no such tensor"):
        checkpoint.tensor("nope")
