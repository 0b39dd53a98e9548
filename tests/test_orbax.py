"""What Orbax writes: managers, steps and items of every kind, there and back."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import jentropy
from jentropy.checkpoints import array_store, smaller_chunks, tree_writing
from jentropy.errors import (
    CheckError,
    CorruptError,
    DestinationError,
    InputError,
    UnsupportedError,
)

from .conftest import read_tree, same_tree


def params() -> dict:
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.standard_normal((48, 32)) * 0.02, jnp.bfloat16),
        "zero": jnp.zeros(5),
    }


def state() -> dict:
    return {
        "params": params(),
        "step": 3,
        "on": True,
        "lr": 0.1,
        "name": "run-1",
        "none": None,
        "empty": {},
        "key": jax.random.key(1),
        "list": [np.arange(3), {"b": jnp.ones(2)}],
    }


@pytest.fixture(scope="module")
def manager(tmp_path_factory) -> Path:
    """The root of a manager: two steps of items of all kinds."""
    return written(tmp_path_factory.mktemp("manager") / "root", params())


def written(root: Path, own: dict) -> Path:
    with ocp.CheckpointManager(root, metadata={"by": "us"}) as made:
        for step in (0, 3):
            made.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(own),
                    state=ocp.args.PyTreeSave(state()),
                    config=ocp.args.JsonSave({"layers": 2}),
                    array=ocp.args.ArraySave(np.arange(4.0) + step),
                    numpy=ocp.args.NumpyRandomKeySave(np.random.RandomState(1).get_state()),
                ),
            )
    (root / "3" / "proto").mkdir()
    (root / "3" / "proto" / "message.pb").write_bytes(b"\x08\x96\x01\xff")
    return root


@pytest.fixture(scope="module")
def archive(manager, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    jentropy.compress_checkpoint(manager, folder / "all")
    return folder / "all"


def restored(root: Path, step: int):
    with ocp.CheckpointManager(root) as opened:
        return opened.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params()),
                state=ocp.args.PyTreeRestore(),
                config=ocp.args.JsonRestore(),
                array=ocp.args.ArrayRestore(),
                numpy=ocp.args.NumpyRandomKeyRestore(),
            ),
        )


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_manager_restores_every_item_of_every_step(manager, archive, tmp_path):
    assert jentropy.verify(archive, against=manager).compared
    jentropy.decompress_checkpoint(archive, tmp_path / "out")
    for step in (0, 3):
        ours, theirs = restored(tmp_path / "out", step), restored(manager, step)
        assert ours.keys() == theirs.keys()
        for item in theirs:
            assert same_tree(ours[item], theirs[item]), item
    assert (tmp_path / "out/3/proto/message.pb").read_bytes() == b"\x08\x96\x01\xff"
    # What a second look finds in both is the same, and the archive is sound against it.
    assert jentropy.verify(archive, against=tmp_path / "out").compared


def test_names_tell_step_and_item(manager, archive):
    names = jentropy.open_checkpoint(archive).names()
    assert names == jentropy.open_checkpoint(manager).names()
    assert {"0.params.w", "3.params.w", "3.state.params.w", "0.state.on"} <= set(names)
    report = jentropy.analyze(archive)
    assert report.to_json()["tensors"] == jentropy.analyze(manager).to_json()["tensors"]
    assert jentropy.inspect(archive).weights == report.weights


def test_load_gives_every_item_as_it_was(archive):
    tree = jentropy.decompress(jentropy.load(archive))
    step = tree["3"]
    assert step.keys() == {"array", "config", "numpy", "params", "state"}
    assert same_tree(step["params"], params())
    assert same_tree(step["state"], state())
    assert step["config"] == {"layers": 2}
    assert step["numpy"]["np_random_key"][0] == "MT19937"


@pytest.mark.parametrize("level", ["3", "3/params", "3/state"])
def test_a_step_and_an_item_are_sources(level, manager, tmp_path):
    jentropy.compress_checkpoint(manager / level, tmp_path / "dst")
    jentropy.verify(tmp_path / "dst", against=manager / level)
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out/3")
    kept, back = read_tree(manager / level), read_tree(tmp_path / "out/3")
    assert all(back[n] == kept[n] for n in kept if "ocdbt" not in n and "/d/" not in f"/{n}")
    if level == "3/params":
        target = jax.tree.map(jnp.zeros_like, params())
        with ocp.StandardCheckpointer() as checkpointer:
            assert same_tree(checkpointer.restore(tmp_path / "out/3", target), params())
        assert jentropy.open_checkpoint(tmp_path / "dst").names() == ["w", "zero"]
        assert same_tree(jentropy.decompress(jentropy.load(tmp_path / "dst")), params())


def test_one_step_of_a_root(manager, tmp_path):
    jentropy.compress_checkpoint(manager, tmp_path / "dst", step=3)
    jentropy.verify(tmp_path / "dst", against=manager, step=3)
    with pytest.raises(CheckError, match="only in the source"):
        jentropy.verify(tmp_path / "dst", against=manager)
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    with ocp.CheckpointManager(tmp_path / "out") as opened:
        assert list(opened.all_steps()) == [3]
        assert opened.metadata().custom_metadata == {"by": "us"}
    with pytest.raises(InputError, match=r"step 7.*one of 0, 3"):
        jentropy.compress_checkpoint(manager, tmp_path / "other", step=7)
    assert "params.w" in jentropy.open_checkpoint(manager, step=3).names()


def test_progress_goes_through_every_byte(manager, archive, tmp_path):
    class Bar:
        total = done = 0

        def expect(self, total, done):
            self.total, self.done = total, done

        def __call__(self, amount):
            self.done += amount

    for run in (
        lambda bar: jentropy.compress_checkpoint(manager, tmp_path / "dst", progress=bar),
        lambda bar: jentropy.verify(archive, against=manager, progress=bar),
        lambda bar: jentropy.decompress_checkpoint(archive, tmp_path / "out", progress=bar),
    ):
        bar = Bar()
        run(bar)
        assert 0 < bar.total == bar.done


def test_what_was_written_is_overwritten_and_nothing_else(manager, archive, tmp_path):
    for _ in range(2):
        jentropy.decompress_checkpoint(archive, tmp_path / "out", overwrite=True)
    jentropy.verify(archive, against=tmp_path / "out")
    (tmp_path / "out" / "3" / "mine").touch()
    with pytest.raises(DestinationError, match="3/mine"):
        jentropy.decompress_checkpoint(archive, tmp_path / "out", overwrite=True)
    for step in (0, 3):
        jentropy.compress_checkpoint(manager, tmp_path / "dst", step=step, overwrite=True)
        jentropy.verify(tmp_path / "dst", against=manager, step=step)


def test_weights_and_configs_beside_items_are_told_of_alike(manager, archive, tmp_path):
    source = Path(shutil.copytree(manager / "3" / "params", tmp_path / "src"))
    (source / "more").mkdir()
    header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (source / "more" / "x.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"1"
    )
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    for path in (source, tmp_path / "dst"):
        opened = jentropy.open_checkpoint(path)
        assert opened.names() == ["w", "zero"]
        assert "more/x.safetensors: beside the arrays" in opened.notes[0]
        assert jentropy.open_checkpoint(path / "more").names() == ["x"]
    with pytest.raises(InputError, match="names begin with step and item"):
        jentropy.open_checkpoint(archive / "3")
    (source / "config.json").write_text("{")  # no checkpoint, but its bytes are kept
    jentropy.compress_checkpoint(source, tmp_path / "bad")
    for path in (source, tmp_path / "bad"):
        with pytest.raises(InputError, match=r"config\.json.*not JSON"):
            jentropy.open_checkpoint(path)
    assert any("not JSON" in note for note in jentropy.inspect(tmp_path / "bad").notes)


@pytest.mark.parametrize("harm", ["item", "json", "value", "step"])
def test_verify_sees_what_an_archive_lacks(harm, manager, archive, tmp_path):
    other = Path(shutil.copytree(manager, tmp_path / "other"))
    if harm == "item":
        shutil.copytree(other / "3/params", other / "3/more")
    elif harm == "json":
        (other / "3/config/metadata").write_text(json.dumps({"layers": 3}))
    elif harm == "step":
        shutil.rmtree(other / "0")
    else:
        other = written(tmp_path / "more", {**params(), "w": params()["w"].at[0, 0].add(1)})
    with pytest.raises(CheckError, match=r"3/more|config/metadata|params.*'0\.params\.w'|/0/"):
        jentropy.verify(archive, against=other)


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("ocdbt", [False, True])
def test_every_layout_of_arrays(ocdbt, zarr3, tmp_path):
    tree = {"a": {"x/y": np.arange(3), "w": np.ones((4, 4), np.float16)}, "n": 5, "s": "text"}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "src", tree)
        jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
        jentropy.verify(tmp_path / "dst", against=tmp_path / "src")
        assert same_tree(jentropy.decompress(jentropy.load(tmp_path / "dst")), tree)
        jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
        assert same_tree(checkpointer.restore(tmp_path / "out"), tree)
    for file in (tmp_path / "src").rglob("*"):
        if file.is_file() and ("d" in file.parts or ("a.w" in file.parts and "0" in file.name)):
            file.unlink()
    with pytest.raises(InputError):
        jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_paths_that_read_alike_are_two_tensors(tmp_path):
    tree = {"a.b": np.ones(2), "a": {"b": np.zeros(3)}}
    jentropy.save(tmp_path / "t", tree)
    opened = jentropy.open_checkpoint(tmp_path / "t")
    assert {opened.tensor(name).shape for name in opened.names()} == {(2,), (3,)}
    assert same_tree(jentropy.decompress(jentropy.load(tmp_path / "t")), tree)
    assert len(jentropy.analyze(tree).tensors) == len(jentropy.analyze(tmp_path / "t").tensors) == 2
    # Orbax itself writes one of the two; both are shown, with a word on it.
    v1.save(tmp_path / "src", {"a.b": np.ones(3), "a": {"b": np.ones(3)}})
    jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    for path in (tmp_path / "src", tmp_path / "dst"):
        assert len(jentropy.open_checkpoint(path).names()) == 2
    assert "one array for both" in jentropy.open_checkpoint(tmp_path / "src").notes[0]
    with pytest.raises(UnsupportedError, match=r"'a\.b': Orbax would store two leaves as one"):
        jentropy.decompress_checkpoint(tmp_path / "t", tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_an_item_that_is_not_complete_is_an_error(manager, tmp_path):
    other = Path(shutil.copytree(manager / "3" / "params", tmp_path / "other"))
    told = json.loads((other / "_METADATA").read_text())
    told["tree_metadata"]["('v',)"] = told["tree_metadata"]["('w',)"] | {
        "key_metadata": [{"key": "v", "key_type": 2}]
    }
    (other / "_METADATA").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"'v'.*not complete"):
        jentropy.open_checkpoint(other)
    (other / "_METADATA").write_text("{}")
    with pytest.raises(InputError, match="_METADATA"):
        jentropy.open_checkpoint(other)


def test_a_step_that_was_not_committed_is_kept_as_bytes(manager, tmp_path):
    source = Path(shutil.copytree(manager, tmp_path / "src"))
    (source / "0").rename(source / "5.orbax-checkpoint-tmp")
    assert any("5.orbax" in note for note in jentropy.open_checkpoint(source).notes)
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    jentropy.verify(tmp_path / "dst", against=source)
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    ours, theirs = read_tree(tmp_path / "out"), read_tree(source)
    assert [n for n in theirs if n.startswith("5") and ours[n] != theirs[n]] == []


def test_killed_work_on_a_step_is_taken_up(manager, tmp_path, monkeypatch):
    from jentropy.checkpoints import writer

    monkeypatch.setattr(writer, "BUNDLE_BYTES", 1000)
    flush, calls = writer.Writer.flush, []

    def interrupt(self):
        flush(self)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer.Writer, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        jentropy.compress_checkpoint(manager, tmp_path / "dst")
    monkeypatch.setattr(writer.Writer, "flush", flush)
    jentropy.compress_checkpoint(manager, tmp_path / "dst")
    jentropy.verify(tmp_path / "dst", against=manager)


@pytest.mark.parametrize("ocdbt", [True, False])
def test_large_chunks_come_back_as_smaller_ones(ocdbt, tmp_path, monkeypatch):
    tree = {"w": np.arange(10_000.0).reshape(100, 100), "b": np.arange(20)}
    context = v1.Context()
    context.array.saving.use_ocdbt = ocdbt
    with context:
        v1.save(tmp_path / "src", tree)
    jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    monkeypatch.setattr(smaller_chunks, "WHOLE", 10_000)
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert same_tree(v1.load(tmp_path / "out"), tree)
    arrays, _ = array_store.read_store(tmp_path / "out" / "state", ["w/", "b/"])
    assert {a.array.name: a.array.together for a in arrays} == {"w": (12, 100), "b": (20,)}
    jentropy.verify(tmp_path / "dst", against=tmp_path / "out")
    monkeypatch.setattr(smaller_chunks, "WHOLE", 20_000)
    with pytest.raises(CheckError, match="'w' is laid out otherwise"):
        jentropy.verify(tmp_path / "dst", against=tmp_path / "out")


@pytest.mark.parametrize("given", [0, 1 << 20])
def test_python_leaves_and_keys_come_back_as_they_were(given, tmp_path, monkeypatch):
    monkeypatch.setattr(tree_writing, "GIVEN_BYTES", given)
    tree = {
        **state(),
        "big": 1 << 90,
        "nan": float("nan"),
        "complex": 1 - 2j,
        "keys": jax.random.split(jax.random.key(0, impl="rbg"), 3),
    }
    packed = jentropy.compress(tree)
    back = jentropy.decompress(packed)
    jentropy.save(tmp_path / "t", packed)
    for found in (back, jentropy.decompress(jentropy.load(tmp_path / "t"))):
        assert np.isnan(found["nan"])
        assert same_tree({**found, "nan": 0}, {**tree, "nan": 0})
    del tree["big"], tree["complex"]
    jentropy.save(tmp_path / "s", tree)
    jentropy.decompress_checkpoint(tmp_path / "s", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = v1.load(tmp_path / "out")
    assert same_tree({**found, "nan": 0}, {**tree, "nan": 0})
    jentropy.verify(tmp_path / "s", against=tmp_path / "out")


SAVES = {
    "standard": lambda path, tree: ocp.StandardCheckpointer().save(path, tree),
    "pytree": lambda path, tree: ocp.PyTreeCheckpointer().save(path, tree),
    "manager": lambda path, tree: ocp.CheckpointManager(path).save(
        0, args=ocp.args.StandardSave(tree)
    ),
    "v1": lambda path, tree: v1.save(path, tree),
}


@pytest.mark.parametrize("save", SAVES)
def test_orbax_refuses_what_it_could_not_give_back(save, tmp_path):
    packed = jentropy.compress(params())
    with pytest.raises(ValueError, match=r"jentropy\.save\(path, tree\)"):
        SAVES[save](tmp_path / "t", packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Orbax's own, which it leaves behind
        gc.collect()


HOSTILE = {
    "path": ("stores.0.path", "../evil", "path"),
    "path absolute": ("stores.0.path", "/etc", "path"),
    "tensor": ("stores.0.arrays.0.0", 99999, "arrays"),
    "prefix": ("stores.0.arrays.0.1", 3, "arrays"),
    "prefix upwards": ("stores.0.arrays.0.1", "../../x/", "arrays"),
    "metadata": ("stores.0.arrays.0.2", [], "arrays"),
    "arrays": ("stores.0.arrays", [3], "arrays"),
    "ocdbt": ("stores.0.ocdbt", "yes", "ocdbt"),
    "others": ("stores.0.others", [["k", 10**6]], "others"),
    "twice": ("stores.1.path", "0/array", "once"),
    "key": ("tensors.0.key", 3, "key"),
    "scalar": ("tensors.0.scalar", 3, "scalar"),
    "tree": ("tree.dict.0.1", {"dict": [[1.5, 0]]}, "tree"),
    "tree's number": ("tree.dict.0.1", {"int": "xyz"}, "tree"),
    "tree's float": ("tree.dict.0.1", {"float": "00"}, "tree"),
    "tree beside": ("tree.dict.0.1", {"value": 1, "more": 2}, "tree"),
    "no tree": ("tree", {}, "tree"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_index_of_stores_is_refused(name, archive, monkeypatch):
    from jentropy.checkpoints import index as index_lib
    from jentropy.checkpoints import store

    path, value, message = HOSTILE[name]
    opened = store.Store(archive)
    content = json.loads(zlib.decompress(opened.array("index").tobytes()))
    node = content
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for key in parents:
        node = node[key]
    node[last] = value
    read = index_lib.from_bytes
    monkeypatch.setattr(
        index_lib,
        "from_bytes",
        lambda *_: read(zlib.compress(json.dumps(content).encode()), *_[1:]),
    )
    with pytest.raises(CorruptError, match=message):
        jentropy.open_checkpoint(archive)
