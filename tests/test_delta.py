"""Checkpoints that are told by others: smaller, whole with their base, refused without it."""

import json
import zlib

import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.checkpoints.store import Store
from jentropy.cli.main import main
from jentropy.codecs import FORMS, Delta
from jentropy.errors import InputError

from . import plain_decoder


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((60, 500)) * 0.02
    return {
        "bf16": dense.astype(ml_dtypes.bfloat16),
        "fp32": dense[:9].astype(np.float32),
        "fp8": dense[:30].astype(ml_dtypes.float8_e4m3fn),
        "int32": rng.integers(-99, 99, 900).astype(np.int32),
        "bits": rng.integers(0, 2, (50, 60)).astype(np.uint16) << 12,
        "same": dense[:3, 0],
        "gone": dense[0],
    }


def tuned(tree: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """What a short training makes of weights."""
    rng = np.random.default_rng(seed)

    def step(values):
        moved = values.astype(np.float64) * (1 + 0.003 * rng.standard_normal(values.shape))
        return moved.astype(values.dtype)

    made = {name: step(tree[name]) for name in ("bf16", "fp32", "fp8", "int32")}
    flips = (rng.random(tree["bits"].shape) < 0.02).astype(np.uint16)
    made |= {"bits": tree["bits"] ^ flips << 12, "same": tree["same"]}
    return made | {"new": np.ones(200, np.float16), "bf16_": made["bf16"]}


def size_of(path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def same(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == values.dtype and ours[name].tobytes() == values.tobytes()
        for name, values in theirs.items()
    )


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP32", "FP8_E5M2", "INT8", "FP8_E8M0"])
@pytest.mark.parametrize("form", FORMS)
def test_differences_of_any_codes_give_them_back(name, form):
    element, rng = formats.ELEMENTS[name], np.random.default_rng(0)
    dtype = formats.code_dtype(element.dtype)
    codes, base = (np.frombuffer(rng.bytes(4096), dtype) for _ in range(2))
    delta = Delta(form=form, element=element)
    told = delta.of(codes, base)
    assert told.dtype == dtype
    assert (delta.restored(told, base) == codes).all()
    assert not delta.of(codes, codes).any()
    if form == "difference":  # those in the order of their values are one away from each other
        some = np.float32([-2, -1.5, -0.0, 0.0, 0.5, 1]).astype(element.dtype)
        near = formats.codes_of(some)
        after = delta._in_place(delta._ordered(near) + dtype.type(1))
        assert delta.of(after, near).tolist() == [2] * 6
        assert delta.of(near, after).tolist() == [1] * 6


def test_a_checkpoint_is_told_by_its_base(tmp_path):
    base, tree = weights(), tuned(weights())
    jentropy.save(tmp_path / "base", base)
    jentropy.save(tmp_path / "alone", tree)
    jentropy.save(tmp_path / "delta", tree, base=tmp_path / "base")
    assert size_of(tmp_path / "delta") < 0.6 * size_of(tmp_path / "alone")
    packed = jentropy.load(tmp_path / "delta", base=tmp_path / "base")
    assert same(jentropy.decompress(packed), tree)
    part = jentropy.decompress_slice(packed["bf16"], np.s_[7:9, 3:400])
    assert part.tobytes() == tree["bf16"][7:9, 3:400].tobytes()
    told = {e.name: e.header.delta for e in Store(tmp_path / "delta").index.tensors}
    assert told["bf16"] == told["fp32"] == "difference"
    assert told["bits"] == "xor"
    assert told["new"] == told["bf16_"] == ""
    opened = jentropy.open_checkpoint(tmp_path / "delta", base=tmp_path / "base")
    assert (opened.tensor("fp8").values() == tree["fp8"]).all()
    plain = dict(plain_decoder.read(tmp_path / "delta", tmp_path / "base"))
    assert plain == {name: values.tobytes() for name, values in tree.items()}
    # What is written of it without a base stands alone.
    jentropy.save(tmp_path / "again", packed)
    assert same(jentropy.decompress(jentropy.load(tmp_path / "again")), tree)
    assert json.loads(zlib.decompress(Store(tmp_path / "alone").array("index")))["jentropy"] == 2


def test_another_base_or_none_is_told(tmp_path):
    jentropy.save(tmp_path / "base", weights())
    jentropy.save(tmp_path / "other", weights(5))
    path = tmp_path / "delta"
    jentropy.save(path, tuned(weights()), base=tmp_path / "base")
    for read in (jentropy.load, jentropy.verify, jentropy.open_checkpoint):
        with pytest.raises(InputError, match=r"digest [0-9a-f]{16}, found [0-9a-f]{16}"):
            read(path, base=tmp_path / "other")
    with pytest.raises(InputError, match=r"digest .* found none .*--base"):
        jentropy.verify(path)
    with pytest.raises(InputError, match="--base"):
        jentropy.decompress_checkpoint(path, tmp_path / "out")
    with pytest.raises(InputError, match="'bf16': base"):
        jentropy.decompress(jentropy.load(path))
    assert jentropy.inspect(path).weights > 0
    # One that holds the same in another way will do.
    jentropy.save(tmp_path / "longer", weights() | {"a": np.zeros(3)} | {"z": np.ones(700)})
    with pytest.raises(InputError, match="digest"):  # its tensors have other numbers
        jentropy.verify(path, base=tmp_path / "longer")
    jentropy.save(tmp_path / "copy", jentropy.load(tmp_path / "base"))
    assert jentropy.verify(path, base=tmp_path / "copy").tensors == 8


def test_bases_of_bases(tmp_path):
    trees = [weights()]
    for seed in range(2):
        trees.append({"gone": trees[0]["gone"]} | tuned(weights() | trees[-1], seed))
    paths = [tmp_path / str(n) for n in range(3)]
    for n, (path, tree) in enumerate(zip(paths, trees, strict=True)):
        jentropy.save(path, tree, base=paths[:n][::-1])
    chain = [paths[1], paths[0]]
    assert same(jentropy.decompress(jentropy.load(paths[2], base=chain)), trees[2])
    assert jentropy.verify(paths[2], base=chain).tensors == len(trees[2])
    plain = dict(plain_decoder.read(paths[2], *chain))
    assert plain == {name: values.tobytes() for name, values in trees[2].items()}
    with pytest.raises(InputError, match="'bf16': base"):
        jentropy.decompress(jentropy.load(paths[2], base=paths[1]))


def test_damage_of_either_is_found(tmp_path):
    jentropy.save(tmp_path / "base", weights())
    jentropy.save(tmp_path / "delta", tuned(weights()), base=tmp_path / "base")
    for name in ("delta", "base"):
        file = tmp_path / name / "state" / "bundles.00000" / "c" / "0"
        whole = file.read_bytes()
        file.write_bytes(whole[:50] + bytes([whole[50] ^ 4]) + whole[51:])
        with pytest.raises(InputError, match="checksum"):
            jentropy.verify(tmp_path / "delta", base=tmp_path / "base")
        file.write_bytes(whole)
    jentropy.verify(tmp_path / "delta", base=tmp_path / "base")


def test_files_by_the_command_line(tmp_path, capsys):
    from .soak.measuring import write_safetensors

    def write(folder, values):
        tensors = {"w": ("BF16", [90, 400]), "v": ("F32", [30])}
        parts = [values.astype(ml_dtypes.bfloat16).tobytes(), values[0, :30].astype("f4").tobytes()]
        write_safetensors(folder / "model.safetensors", tensors, lambda n, _: [parts[n]])

    dense = np.random.default_rng(3).standard_normal((90, 400))
    write(tmp_path / "model", dense)
    write(tmp_path / "tuned", dense * 1.001)
    base, delta, out = (str(tmp_path / name) for name in ("base", "delta", "out"))
    assert main(["compress", str(tmp_path / "model"), base]) == 0
    assert main(["compress", str(tmp_path / "tuned"), delta, "--base", base]) == 0
    assert size_of(tmp_path / "delta") < size_of(tmp_path / "base") / 2
    assert main(["verify", delta, "--base", base, "--against", str(tmp_path / "tuned")]) == 0
    assert main(["decompress", delta, out, "--base", base]) == 0
    found = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert found == (tmp_path / "tuned" / "model.safetensors").read_bytes()
    assert main(["analyze", delta, "--base", base, "--json", str(tmp_path / "report")]) == 0
    told = json.loads((tmp_path / "report").read_text())
    of_source = jentropy.analyze(tmp_path / "tuned").to_json()
    assert told["formats"] == of_source["formats"]
    capsys.readouterr()
    for command in (["decompress", delta, str(tmp_path / "not")], ["analyze", delta]):
        assert main(command) == 2
        assert "--base" in capsys.readouterr().err


def test_damaged_ones_are_salvaged_and_repaired(tmp_path, capsys):
    from orbax.checkpoint import v1

    base, delta, source, out = (str(tmp_path / name) for name in ("base", "delta", "tuned", "out"))
    tree = tuned(weights())
    jentropy.save(base, weights())
    jentropy.save(delta, tree, base=base)
    v1.save(tmp_path / "tuned", tree)
    bundle = tmp_path / "delta" / "state" / "bundles.00000" / "c" / "0"
    whole = bundle.read_bytes()
    entries = {entry.name: entry for entry in Store(tmp_path / "delta").index.tensors}
    at = entries["bf16"].places[0][1]
    bundle.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    assert main(["salvage", delta, out]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["salvage", delta, out, "--base", base]) == 1
    found = jentropy.open_checkpoint(out)
    assert set(found.names()) == tree.keys() - {"bf16"}
    assert (found.tensor("bits").values() == tree["bits"]).all()
    below = tmp_path / "base" / "state" / "bundles.00000" / "c" / "0"
    sound = below.read_bytes()
    at = {entry.name: entry for entry in Store(tmp_path / "base").index.tensors}["fp8"].places[0][1]
    below.write_bytes(sound[:at] + bytes([sound[at] ^ 4]) + sound[at + 1 :])
    assert main(["salvage", delta, f"{out}2", "--base", base]) == 1
    assert set(jentropy.open_checkpoint(f"{out}2").names()) == tree.keys() - {"bf16", "fp8"}
    left = jentropy.load(delta, base=base, damaged="leave_out")
    assert [name for name, tensor in left.items() if tensor is None] == ["bf16", "fp8"]
    below.write_bytes(sound)
    assert main(["salvage", delta, "--repair-from", source]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["salvage", delta, "--repair-from", source, "--base", base]) == 0
    assert bundle.read_bytes() == whole
