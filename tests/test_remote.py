"""Checkpoints behind URLs: memory, an object store and a web server, a cache of the hub."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

import jentropy
from jentropy.checkpoints import mapping, mirrors, slabs
from jentropy.checkpoints.remote import RemotePath
from jentropy.cli.main import main
from jentropy.errors import DestinationError, InputError, UnsupportedError

from .object_store import serving

MARKERS = ["_CHECKPOINT_METADATA", "commit_success.txt"]


def safetensors(**arrays: bytes) -> bytes:
    """A file of BF16 vectors."""
    header, at = {}, 0
    for name, data in arrays.items():
        offsets = [at, at + len(data)]
        header[name] = {"dtype": "BF16", "shape": [len(data) // 2], "data_offsets": offsets}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(arrays.values())


DATA = safetensors(a=np.random.default_rng(0).bytes(3000), b=b"\1\2" * 400)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Stages lie here."""
    monkeypatch.setenv(mirrors.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory():
    """The file system behind `memory://`, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe_file("/src/model.safetensors", DATA)
    system.pipe_file("/src/config.json", b'{"model_type": "llama"}')
    system.pipe_file("/src/below/notes.txt", b"hello")
    yield system
    system.store.clear()


@pytest.fixture
def store(monkeypatch):
    """An object store that s3fs is led to, with a source in a bucket."""
    pytest.importorskip("s3fs", reason="s3fs of the extra 'remote' is not installed")
    with serving() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server.objects["bucket/src/model.safetensors"] = DATA
        server.objects["bucket/src/config.json"] = b"{}"
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # that know another server
        yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_every_command_takes_urls(memory, cache, tmp_path, capsys):
    assert main(["compress", "memory://src", "memory://dst", "-q"]) == 0
    for command in ("inspect", "verify", "analyze"):
        assert main([command, "memory://dst"]) == 0, command
        assert "memory://dst" in capsys.readouterr().out
    assert main(["verify", "memory://dst", "--against", "memory://src", "-q"]) == 0
    assert main(["decompress", "memory://dst", "memory://out", "-q"]) == 0
    assert main(["decompress", "memory://dst", str(tmp_path / "out"), "-q"]) == 0
    assert memory.cat_file("/out/model.safetensors") == DATA
    assert (tmp_path / "out/below/notes.txt").read_bytes() == b"hello"
    assert sorted(memory.find("/out")) == [n.replace("/src", "/out") for n in memory.find("/src")]
    assert main(["salvage", "memory://dst", "memory://saved", "-q"]) == 0
    assert memory.cat_file("/saved/model.safetensors") == DATA
    assert not list(cache.iterdir()), "a stage is left"


def test_same_bytes_as_a_local_one(memory, tmp_path):
    source = tmp_path / "src"
    memory.get("/src", str(source), recursive=True)
    jentropy.compress_checkpoint("memory://src", tmp_path / "ours")
    jentropy.compress_checkpoint(source, tmp_path / "local")
    bundle = "state/bundles.00000/c/0"
    assert (tmp_path / "ours" / bundle).read_bytes() == (tmp_path / "local" / bundle).read_bytes()
    assert jentropy.verify(tmp_path / "ours", source).compared
    told = jentropy.open_checkpoint("memory://src/model.safetensors").tensor("b")
    assert told.codes["code"].tolist() == [513] * 400


def test_large_tensors_are_read_in_slabs(memory, tmp_path, monkeypatch):
    shape, data = [96, 64], np.random.default_rng(1).bytes(2 * 96 * 64)
    header = {"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    memory.pipe_file("/src/model.safetensors", len(text).to_bytes(8, "little") + text + data)
    source = tmp_path / "src"
    memory.get("/src", str(source), recursive=True)
    jentropy.compress_checkpoint(source, tmp_path / "local")
    expected = jentropy.analyze(source).to_json()

    def read(path, offset, size):
        sizes.append(size)
        return whole(path, offset, size)

    sizes, whole = [], RemotePath.read
    monkeypatch.setattr(RemotePath, "read", read)
    monkeypatch.setattr(slabs, "LARGE", 1 << 10)
    monkeypatch.setattr(slabs, "WEIGHTS", 1 << 9)
    monkeypatch.setattr(slabs, "AHEAD", 1 << 7)
    monkeypatch.setattr(mapping, "IN_MEMORY", 1 << 11)
    monkeypatch.setattr(mapping, "AHEAD_BYTES", 8)
    found = jentropy.analyze("memory://src").to_json()
    assert {**found, "source": expected["source"]} == expected
    assert sizes.count(1 << 10) == 12, "slabs of eight rows"
    sizes.clear()
    tensor = jentropy.open_checkpoint("memory://src").tensor("w")
    part = tensor.stored["code"].array.part((slice(5, 7), slice(3, 60, 2)))
    assert part.tobytes() == np.frombuffer(data, np.uint16).reshape(shape)[5:7, 3:60:2].tobytes()
    assert sizes[-1] == 2 * 2 * 64
    sizes.clear()
    jentropy.compress_checkpoint("memory://src", tmp_path / "ours")
    assert sizes.count(1 << 11) == 6, "what lies in no memory comes piece by piece"
    bundle = "state/bundles.00000/c/0"
    assert (tmp_path / "ours" / bundle).read_bytes() == (tmp_path / "local" / bundle).read_bytes()


def test_trees(memory):
    tree = {"w": np.arange(100, dtype=np.int16), "rate": 0.5}
    jentropy.save("memory://tree", tree)
    with pytest.raises(DestinationError, match="memory://tree: destination exists"):
        jentropy.save("memory://tree", tree)
    jentropy.save("memory://tree", {"w": np.arange(7)}, overwrite=True)
    back = jentropy.decompress(jentropy.load("memory://tree"))
    assert {key: value.tolist() for key, value in back.items()} == {"w": list(range(7))}
    with pytest.raises(DestinationError, match="memory://src: destination cannot be overwritten"):
        jentropy.save("memory://src", tree, overwrite=True)


def test_an_orbax_checkpoint(memory, tmp_path):
    from orbax.checkpoint import v1

    tree = {"w": np.arange(600, dtype=np.float32).reshape(20, 30)}
    v1.save(tmp_path / "orbax", tree)
    memory.put(str(tmp_path / "orbax"), "/orbax", recursive=True)
    jentropy.compress_checkpoint("memory://orbax", "memory://packed")
    jentropy.decompress_checkpoint("memory://packed", "memory://again")
    memory.get("/again", str(tmp_path / "again"), recursive=True)
    assert np.array_equal(v1.load(tmp_path / "again")["w"], tree["w"])


def test_stock_orbax_reads_what_was_sent(memory, tmp_path):
    from orbax.checkpoint import v1

    jentropy.compress_checkpoint("memory://src", "memory://dst")
    memory.get("/dst", str(tmp_path / "dst"), recursive=True)
    names = {str(key) for key in v1.load(tmp_path / "dst")}
    assert names == {"bundles", "copy", "index"}
    jentropy.verify(tmp_path / "dst")


def test_unreadable_before_its_marker(memory, monkeypatch):
    """After every single write of the store the destination is not there, not whole, or right."""
    seen = []

    def look(self, path, value, *args, **kwargs):
        write(self, path, value, *args, **kwargs)
        try:
            seen.append(jentropy.verify("memory://dst", "memory://src"))
        except InputError as error:
            seen.append(str(error))

    write = type(memory).pipe_file
    monkeypatch.setattr(type(memory), "pipe_file", look)
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, a, b: self.pipe_file(b, Path(a).read_bytes())
    )
    jentropy.compress_checkpoint("memory://src", "memory://dst")
    assert len(seen) > 8
    assert set(seen) == {"memory://dst: not whole: it is being written, or that was given up"}
    assert jentropy.verify("memory://dst").tensors == 2
    memory.rm_file("/dst/commit_success.txt")  # as Orbax has it while it writes
    with pytest.raises(InputError, match=r"memory://dst/commit_success.txt: commit marker"):
        jentropy.open_checkpoint("memory://dst")


def test_goes_on_where_it_was_refused(store):
    store.refuse = lambda method, key: method == "PUT" and key.endswith("copy/c/0")
    with pytest.raises(DestinationError, match="s3://bucket/dst/state/copy/c/0: cannot") as caught:
        jentropy.compress_checkpoint("s3://bucket/src", "s3://bucket/dst")
    assert len(str(caught.value)) < 300
    assert "the same command goes on" in caught.value.__notes__[0]
    with pytest.raises(InputError, match="s3://bucket/dst: not whole"):
        jentropy.load("s3://bucket/dst")
    store.refuse = lambda method, key: False
    first = len(store.requests)
    jentropy.compress_checkpoint("s3://bucket/src", "s3://bucket/dst")
    again = [key for method, key in store.requests[first:] if method == "PUT"]
    assert not any("bundles" in key for key in again), "what was sent is sent again"
    assert [key.rpartition("/")[2] for key in again[-2:]] == MARKERS
    assert jentropy.verify("s3://bucket/dst", "s3://bucket/src").compared


def test_what_is_left_behind_the_marker_is_cleaned(memory, cache, monkeypatch):
    def die_at_the_stage(path, **options):
        if Path(path).name.startswith(".dst."):
            raise SystemExit
        rmtree(path, **options)

    rmtree = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die_at_the_stage)
        with pytest.raises(SystemExit):
            jentropy.compress_checkpoint("memory://src", "memory://dst")
    assert jentropy.verify("memory://dst", "memory://src").compared
    assert list(cache.glob("*/.dst.*"))
    with pytest.raises(DestinationError, match="memory://dst: destination exists"):
        jentropy.compress_checkpoint("memory://src", "memory://dst")
    assert not list(cache.glob("*/.dst.*"))


def test_only_what_is_needed_is_read(store):
    jentropy.compress_checkpoint("s3://bucket/src", "s3://bucket/dst")
    first = len(store.requests)
    jentropy.open_checkpoint("s3://bucket/dst")
    read = {key.removeprefix("bucket/dst/") for method, key in store.requests[first:]}
    assert not any(key.startswith("state/copy") for key in read)
    first = len(store.requests)
    assert jentropy.open_checkpoint("s3://bucket/src").names() == ["a", "b"]
    sizes = [key for _, key in store.requests[first:] if key.endswith(".safetensors")]
    assert len(sizes) <= 2, "a header takes two requests at the most"


def test_web_server(store, tmp_path):
    jentropy.compress_checkpoint("s3://bucket/src", "s3://bucket/dst")
    web = f"{store.url}/bucket"
    assert jentropy.verify(f"{web}/dst/", f"{web}/src").compared
    assert jentropy.open_checkpoint(f"{web}/src/model.safetensors").names() == ["a", "b"]
    jentropy.decompress_checkpoint(f"{web}/dst", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == DATA
    with pytest.raises(UnsupportedError, match=f"{web}/new: destination: expected a path or an ob"):
        jentropy.save(f"{web}/new", {"w": np.ones(2)})
    store.refuse = lambda method, key: key.endswith("model.safetensors")
    with pytest.raises(InputError, match=f"{web}/src/model.safetensors: cannot be reached"):
        jentropy.open_checkpoint(f"{web}/src/model.safetensors")
    with pytest.raises(InputError, match=f"{web}/none: no such file or directory"):
        jentropy.open_checkpoint(f"{web}/none")


def test_a_source_that_changes_meanwhile(memory, monkeypatch):
    def change(self, names, *args, **kwargs):
        memory.pipe_file("/src/config.json", b'{"model_type": "gemma"}')
        return ranges(self, names, *args, **kwargs)

    ranges = type(memory).cat_ranges
    monkeypatch.setattr(type(memory), "cat_ranges", change)
    with pytest.raises(InputError, match=r"memory://src/config.json: file changed while it was"):
        jentropy.compress_checkpoint("memory://src", "memory://dst")


def test_other_bytes_than_were_asked_for(memory, monkeypatch):
    def short(self, names, *args, **kwargs):
        return [part[:-1] for part in ranges(self, names, *args, **kwargs)]

    ranges = type(memory).cat_ranges
    monkeypatch.setattr(type(memory), "cat_ranges", short)
    with pytest.raises(InputError, match=r"memory://src/model.safetensors: what the server gave"):
        jentropy.open_checkpoint("memory://src")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing", "memory://nothing: no such file or directory"),
        ("gopher://host/model", "gopher://host/model: cannot be reached: Protocol not known"),
        ("ftp://me:secret@127.0.0.1:1/model", "ftp://127.0.0.1:1/model: cannot be reached"),
    ],
)
def test_one_error_that_names_the_url(url, message, capsys, tmp_path):
    for call in (jentropy.open_checkpoint, jentropy.load, jentropy.inspect, jentropy.verify):
        with pytest.raises(InputError, match=message) as caught:
            call(url)
        assert "secret" not in str(caught.value)
    assert main(["compress", url, str(tmp_path / "dst")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_the_package(monkeypatch):
    def missing(url):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UnsupportedError) as caught:
        jentropy.open_checkpoint("gs://bucket/m")
    needs = "gs:// needs the package gcsfs (install the extra 'remote')"
    assert str(caught.value) == f"gs://bucket/m: {needs}"


def test_hub_cache_comes_first(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
    repository = tmp_path / "hub" / "models--owner--name"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    (folder / "model.safetensors").write_bytes(DATA)
    (folder / "config.json").write_text("{}")
    asked = []
    plain = hub.snapshot_download

    def download(*args, local_files_only, **keywords):
        asked.append(local_files_only)
        if not local_files_only:
            raise OSError("no network")
        return plain(*args, cache_dir=tmp_path / "hub", local_files_only=True, **keywords)

    monkeypatch.setattr(hub, "snapshot_download", download)
    jentropy.compress_checkpoint("hf://owner/name", tmp_path / "dst")
    assert jentropy.verify(tmp_path / "dst", "hf://owner/name").compared
    assert jentropy.analyze("hf://owner/name").weights == 1900
    assert set(asked) == {True}
    (folder / "model.safetensors").unlink()  # what is in the cache is not all of it
    with pytest.raises(InputError, match="hf://owner/name: cannot be downloaded: no network"):
        jentropy.open_checkpoint("hf://owner/name")
    with pytest.raises(InputError, match="hf://owner/other@v1: cannot be downloaded"):
        jentropy.inspect("hf://owner/other@v1")
