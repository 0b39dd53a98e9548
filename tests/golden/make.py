"""Writes the golden files: compressed checkpoints that every later version must read, or refuse.

    python tests/golden/make.py

`valid/NAME/` is a compressed checkpoint of `NAME.npz` (codes by name, and their dtypes) or of the
fixture of that name. `invalid/NAME/` is a damaged one; `invalid/expected.json` says what is wrong.
They are written once for each version of the format and never again: what is there is kept.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import xxhash

import jentropy
from jentropy import formats

HERE = Path(__file__).parent
FIXTURE = "gptoss_mxfp4"  # of before weights were recorded
RECORDED = "gptq_v1_asym_act"
INDEX, BUNDLE = "state/index/c/0", "state/bundles.00000/c/0"


def tree() -> dict[str, np.ndarray]:
    """Arrays that take every branch of the codecs."""
    rng = np.random.default_rng(0)
    scaled = rng.standard_normal((120, 300)) * np.exp(0.6 * rng.standard_normal((120, 1)))
    scaled *= np.exp(0.4 * rng.standard_normal(300)) * 0.02
    scaled[::7, ::13] *= 1e-6
    scaled[3, 5] = 0
    rare = rng.binomial(30, 0.3, 20_000).astype(np.uint8)
    rare[:3] = 0, 200, 255
    return {
        "bf16": scaled.astype(ml_dtypes.bfloat16),
        "bf16_vector": rng.standard_normal(9000).astype(ml_dtypes.bfloat16),
        "fp16": np.clip(scaled, -6e4, 6e4).astype(np.float16),
        "fp32": scaled[:40].astype(np.float32),
        "fp8": scaled[:60].astype(ml_dtypes.float8_e4m3fn),
        "int64": np.arange(3000, dtype=np.int64) ** 2,
        "rare": rare,
        "zeros": np.zeros((100, 100), ml_dtypes.bfloat16),
        "noise": rng.integers(0, 256, 500).astype(np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.full((), np.pi),
    }


def pruned() -> dict[str, np.ndarray]:
    """Arrays most of whose numbers are one, with and without signs."""
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((90, 200)) * 0.02
    kept = rng.random(dense.shape) < 0.4
    return {
        "bf16": np.where(kept, dense, 0).astype(ml_dtypes.bfloat16),
        "bf16_signs": (kept * dense).astype(ml_dtypes.bfloat16),
        "fp16_of_ones": np.where(kept, np.exp(dense) * 8, 1).astype(np.float16),
        "fp32": np.where(kept, dense, 0).astype(np.float32),
        "fp32_signs": (kept * dense).astype(np.float32),
    }


def sparse() -> dict[str, np.ndarray]:
    """Weights half of which are zeros, with and without signs, and two of four."""
    rng = np.random.default_rng(5)
    dense = rng.standard_normal((80, 256)) * 0.02
    order = rng.random((80, 64, 4)).argsort(axis=2).argsort(axis=2).reshape(dense.shape)
    kept = rng.random(dense.shape) < 0.5
    return {
        "bf16": np.where(order < 2, dense, 0).astype(ml_dtypes.bfloat16),
        "bf16_signs": ((order < 2) * dense).astype(ml_dtypes.bfloat16),
        "fp16": np.where(kept, dense, 0).astype(np.float16),
        "fp16_signs": (kept * dense).astype(np.float16),
        "fp8": np.where(order < 2, np.abs(dense) + 1, 0).astype(ml_dtypes.float8_e4m3fn),
    }


def grid() -> dict[str, np.ndarray]:
    """Integers whose rows and columns have scales of their own, and some far from them."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((100, 400))
    columns = values * np.exp(0.7 * rng.standard_normal(400))
    by_row = np.round(values * np.where(np.arange(100) % 2, 1, 4)[:, None]).astype(np.int8)
    by_row[::50, 7] = 99
    both = np.round(columns * np.exp(0.5 * rng.standard_normal((100, 1))))
    return {"rows": by_row, "both": np.clip(both, -128, 127).astype(np.int8)}


def quantised() -> dict:
    """Quantised weights: codes of several formats, and one of an element of its own."""
    rng = np.random.default_rng(2)
    unknown = formats.ElementFormat(
        name="UINT3", dtype=np.dtype(np.uint8), fields=(formats.Field(name="code", bits=3),)
    )
    own = formats.INT4_GROUP.with_element(unknown).with_parameter("scale", block=(32,))

    def weight(number_format: formats.Format) -> formats.QuantizedTensor:
        bits = {p.name: p.element.code_bits for p in number_format.parameters}
        bits["code"] = number_format.element.code_bits
        arrays = formats.code_arrays(number_format, (16, 256))
        codes = {
            key: rng.integers(0, 1 << bits[key], array.shape, np.uint32).astype(array.dtype)
            for key, array in arrays.items()
        }
        return formats.QuantizedTensor(number_format=number_format, codes=codes)

    return {
        "layers": [
            {"mxfp4": weight(formats.MXFP4), "nvfp4": weight(formats.NVFP4)},
            {"int4": weight(formats.ASYMMETRIC_INT4), "mxfp4": weight(formats.MXFP4)},
        ],
        "own": weight(own),
        "bias": tree()["bf16"][0],
    }


TREES = {"tree": tree, "pruned": pruned, "grid": grid, "sparse": sparse}


def small() -> dict[str, np.ndarray]:
    """What is damaged."""
    return {"w": (np.arange(400).reshape(20, 20) % 7).astype(ml_dtypes.bfloat16)}


def edit_index(folder: Path, edit) -> None:
    """Changes the JSON of the index; its checksum is made to fit."""
    size = json.loads((folder / "state/index/zarr.json").read_text())["shape"][0]
    content = json.loads(zlib.decompress((folder / INDEX).read_bytes()[:size]))
    edit(content)
    data = zlib.compress(json.dumps(content).encode(), 9)
    (folder / INDEX).write_bytes(data)
    for name in ("zarr.json",):
        file = folder / "state/index" / name
        told = json.loads(file.read_text())
        told["shape"] = told["chunk_grid"]["configuration"]["chunk_shape"] = [len(data)]
        file.write_text(json.dumps(told))
    edit_metadata(folder, "index_xxh3_64", f"{xxhash.xxh3_64_intdigest(data):016x}")


def edit_metadata(folder: Path, key: str, value) -> None:
    """Changes a key of the custom metadata."""
    file = folder / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    content["custom_metadata"]["jentropy"][key] = value
    file.write_text(json.dumps(content))


def flip(file: Path, at: int) -> None:
    """Turns one bit over."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


def set_in(key: str, value):
    """An edit of the first tensor's entry."""
    return lambda content: content["tensors"][0].update({key: value})


DAMAGE = {
    "newer_version": (
        lambda d: edit_metadata(d, "version", 99), "UnsupportedError", "found 99"
    ),
    "newer_index": (
        lambda d: edit_index(d, lambda c: c.update(jentropy=99)), "UnsupportedError", "found 99"
    ),
    "unknown_codec": (
        lambda d: edit_index(d, set_in("codec", "huffman")), "UnsupportedError", "'huffman'"
    ),
    "unknown_format": (
        lambda d: edit_index(d, set_in("format", "FP5")), "UnsupportedError", "'FP5'"
    ),
    "head": (lambda d: edit_index(d, set_in("head", "AAAA")), "CorruptError", "head of codec"),
    "shape": (lambda d: edit_index(d, set_in("shape", [20, 21])), "CorruptError", "coded symbols"),
    "index_flipped": (lambda d: flip(d / INDEX, 40), "ChecksumError", "checksum of the index"),
    "payload_flipped": (lambda d: flip(d / BUNDLE, 40), "ChecksumError", "checksum of a chunk"),
    "bundle_cut": (
        lambda d: (d / BUNDLE).write_bytes((d / BUNDLE).read_bytes()[:50]),
        "TruncatedError",
        "found 50",
    ),
    "bundle_lost": (lambda d: shutil.rmtree(d / "state/bundles.00000"), "CorruptError", "bundles"),
}  # fmt: skip


def write_tree(name: str) -> None:
    """Arrays, and the compressed checkpoint of them."""
    arrays = TREES[name]()
    codes = {key: np.atleast_1d(jentropy.formats.codes_of(v)) for key, v in arrays.items()}
    np.savez_compressed(HERE / f"{name}.npz", **codes)
    dtypes = {key: [v.dtype.name, list(v.shape)] for key, v in arrays.items()}
    (HERE / f"{name}.json").write_text(json.dumps(dtypes, indent=1) + "\n")
    jentropy.save(HERE / "valid" / name, arrays)


def write_recorded() -> None:
    """Quantised weights, of a pytree and of a checkpoint whose dialect found them."""
    jentropy.save(HERE / "valid" / "quantised", quantised())
    source = HERE.parent / "fixtures" / "quantised" / RECORDED
    jentropy.compress_checkpoint(source, HERE / "valid" / RECORDED)


def step() -> dict:
    """Items of a step that Orbax writes: all kinds of leaves."""
    import jax

    return {
        "state": {
            "params": {"w": tree()["bf16"][:16], "b": np.arange(5, dtype=np.int8)},
            "moments": [np.zeros((2, 3), np.float32), {"n": np.full(1, 7, np.int32)}],
            "step": 3,
            "rate": -0.0,
            "on": True,
            "name": "run",
            "none": None,
            "key": jax.random.key(5),
        },
        "config": {"layers": 2},
    }


def write_step() -> None:
    """A compressed checkpoint of two steps."""
    import orbax.checkpoint as ocp

    items = step()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        with ocp.CheckpointManager(source) as manager:
            for number in (1, 2):
                manager.save(
                    number,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeSave(items["state"]),
                        config=ocp.args.JsonSave(items["config"]),
                    ),
                )
        for file in source.rglob("commit_success.txt"):
            file.write_text("")
        jentropy.compress_checkpoint(source, HERE / "valid" / "steps")


def write_invalid() -> None:
    """Damaged checkpoints, and what is wrong with each."""
    expected = {}
    for name, (damage, error, message) in DAMAGE.items():
        jentropy.save(HERE / "invalid" / name, small())
        damage(HERE / "invalid" / name)
        expected[name] = {"error": error, "message": message}
    text = json.dumps(expected, indent=1) + "\n"
    (HERE / "invalid" / "expected.json").write_text(text)


def write_fixture() -> None:
    """A compressed checkpoint of a fixture."""
    source = HERE.parent / "fixtures" / "quantised" / FIXTURE
    jentropy.compress_checkpoint(source, HERE / "valid" / FIXTURE)


def write_second() -> None:
    """What version 2 adds: a copy of the index, and hashes of files."""
    jentropy.save(HERE / "valid" / "second", small())


def moved() -> dict[str, np.ndarray]:
    """The tree, some of whose codes have moved by one, or have another bit."""
    rng, arrays = np.random.default_rng(4), tree()
    for name in ("bf16", "fp16", "fp32", "fp8", "int64"):
        codes = formats.codes_of(arrays[name])
        steps = rng.integers(0, 3, codes.shape).astype(codes.dtype)
        arrays[name] = (codes + steps).view(arrays[name].dtype)
    arrays["rare"] = arrays["rare"] ^ (rng.random(20_000) < 0.1).astype(np.uint8) << np.uint8(6)
    return arrays


def write_delta() -> None:
    """What version 3 adds: tensors that are told by those of a base, the golden tree."""
    jentropy.save(HERE / "valid" / "delta", moved(), base=HERE / "valid" / "tree")


# What is written, by a folder that is not there before.
GOLDEN = {
    **{f"valid/{name}": partial(write_tree, name) for name in TREES},
    "valid/delta": write_delta,
    "valid/steps": write_step,
    f"valid/{FIXTURE}": write_fixture,
    "valid/quantised": write_recorded,
    "valid/second": write_second,
    "invalid": write_invalid,
}


def main() -> None:
    for name, write in GOLDEN.items():
        if not (HERE / name).exists():
            write()
    for file in HERE.rglob("commit_success.txt"):  # that of version 1 held a path
        if not (file.parent / "state" / "copy").exists():
            file.write_text("")


if __name__ == "__main__":
    main()
