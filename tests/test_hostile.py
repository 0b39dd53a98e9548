"""Input that means harm: bounded in memory and time, one error, nothing outside touched."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jentropy
from jentropy import forks
from jentropy.checkpoints import index, mapping, safetensors, sources
from jentropy.checkpoints.entries import is_safe_path
from jentropy.cli import main as cli
from jentropy.containers import memory
from jentropy.errors import CorruptError, InputError, JentropyError, UnsupportedError, shown
from jentropy.schema import SIZE, parse

from .conftest import ROOT
from .soak import parsers
from .soak.measuring import write_safetensors


def small(folder: Path) -> Path:
    write_safetensors(folder / "m.safetensors", {"w": ("U8", [8])}, lambda *_: [b"abcdefgh"])
    return folder / "m.safetensors"


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_pipes_and_devices_are_refused_and_nobody_waits(name, tmp_path):
    if name.endswith("gguf"):
        pytest.importorskip("gguf", reason="extra gguf is not installed")
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="regular file"):
        jentropy.open_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="regular file"):
        jentropy.compress_checkpoint(tmp_path, tmp_path.parent / "dst")


def test_pipes_in_a_compressed_checkpoint_are_refused(tmp_path):
    for name in ("_CHECKPOINT_METADATA", "state/index/c/0", "state/bundles.00000/c/0"):
        folder = tmp_path / name.replace("/", "-")
        jentropy.save(folder, {"w": np.arange(30)})
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(InputError):
            jentropy.verify(folder)
    (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="regular file"):
        safetensors.read(tmp_path / "x")


def test_links_that_multiply_paths_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINKED", 100)
    root = tmp_path / "root"
    small(root)
    for level in range(12):
        (tmp_path / f"f{level}").mkdir()
    for level in range(11):
        for side in "ab":
            (tmp_path / f"f{level}" / side).symlink_to(tmp_path / f"f{level + 1}")
    assert len(sources.walk(root)) == 1
    (root / "links").symlink_to(tmp_path / "f0")
    with pytest.raises(InputError, match="at most 100"):
        sources.walk(root)
    (root / "links").unlink()
    (root / "links").symlink_to(root)
    with pytest.raises(InputError, match="circle"):
        sources.walk(root)


def test_links_may_be_refused(tmp_path):
    file = small(tmp_path / "blobs")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "m.safetensors").symlink_to(file)
    jentropy.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    for source in (tmp_path / "src", tmp_path / "src" / "m.safetensors"):
        with pytest.raises(InputError, match="a link"):
            jentropy.compress_checkpoint(source, tmp_path / "other", follow_links=False)
    arguments = ["compress", str(tmp_path / "src"), str(tmp_path / "other"), "--no-follow-links"]
    assert cli.main(arguments) == cli.BAD_INPUT


def test_an_index_costs_no_more_than_its_bytes_may(tmp_path):
    for text in (b"[" * 10_000_000, b'{"":[' + b"[]," * 30_000_000 + b"0]}"):
        data = zlib.compress(text, 9)
        assert len(data) < 200_000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CorruptError):
            index.from_bytes(data, tmp_path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def test_sizes_of_many_digits_are_cut_in_messages():
    with pytest.raises(CorruptError, match=r"below 9223372036854775808") as told:
        parse(SIZE, "1" + "0" * 3000, "f")
    assert len(str(told.value)) < 200


def test_a_header_is_bounded_before_it_is_parsed(tmp_path):
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    for header in (b'{"a":[' + b"[]," * 3_000_000 + b"0]}", b"{" + entry * 1_000_001 + b"}"):
        with pytest.raises(CorruptError, match="little else"):
            safetensors.parse_header(tmp_path, header)
    texts = {"__metadata__": {"about": "[{,}]" * 100_000}}
    assert safetensors.parse_header(tmp_path, json.dumps(texts).encode()) == texts


PATHS = {
    "a": (True, True),
    "a/b.c": (True, True),
    "./a": (False, False),
    "a//b": (False, False),
    "a/": (False, False),
    "/a": (False, False),
    "a/../b": (False, False),
    "..": (False, False),
    "": (False, False),
    "a\\b": (False, False),
    "\ud800": (False, False),
    "c:x": (True, False),
    "a/nul.txt": (True, False),
    "COM1": (True, False),
    "a.": (True, False),
    "b ": (True, False),
    "a\x01": (True, False),
    "what?": (True, False),
}


@pytest.mark.parametrize("path", PATHS)
def test_paths_below_a_folder(path):
    assert (is_safe_path(path, windows=False), is_safe_path(path, windows=True)) == PATHS[path]


def test_metadata_of_gguf_cost_no_more_than_their_bytes(tmp_path):
    pytest.importorskip("gguf", reason="extra gguf is not installed")
    from jentropy.checkpoints import gguf_files

    def head(fields: int, *parts: int | bytes) -> bytes:
        key = (3, b"key", np.uint32(9))  # an array
        words = (b"GGUF", np.uint32(3), 0, fields, *key, *parts)
        return b"".join(
            w
            if isinstance(w, bytes)
            else np.uint64(w).tobytes()
            if isinstance(w, int)
            else w.tobytes()
            for w in words
        )

    numbers, texts, arrays = np.uint32(0), np.uint32(8), np.uint32(9)
    hostile = (
        head(1, numbers, 1 << 40),
        head(1, texts, 1 << 62),
        head(1 << 62, numbers, 4, bytes(4)),
        head(1, *(arrays, 1) * 5000),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in hostile:
        (tmp_path / "m.gguf").write_bytes(data)
        with pytest.raises(CorruptError, match=r"m\.gguf"):
            gguf_files.read(tmp_path / "m.gguf")
    data = head(1, numbers, 1 << 22, bytes(1 << 22))
    (tmp_path / "m.gguf").write_bytes(data)
    assert gguf_files.read(tmp_path / "m.gguf").arrays == ()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def test_names_are_escaped_wherever_they_are_printed(tmp_path, capsys):
    evil = "w\x1b[2J\n\u202e"
    tensors = {evil: ("U8", [8]), "v": ("F16", [40, 40])}
    source = tmp_path / "m\x1b[31m.safetensors"
    write_safetensors(source, tensors, lambda _, size: [b"a" * size])
    dst, page = str(tmp_path / "dst\x1b[2J\udcff"), tmp_path / "page.html"
    assert cli.main(["compress", str(source), dst]) == 0
    assert cli.main(["verify", dst]) == 0
    assert cli.main(["inspect", dst]) == 0
    assert cli.main(["analyze", dst, "--html", str(page), "--csv", str(tmp_path / "c")]) == 0
    assert "\x1b" not in page.read_text()
    source.write_bytes(source.read_bytes()[:-1])
    assert cli.main(["analyze", str(source)]) == cli.BAD_INPUT
    both = "".join(capsys.readouterr())
    assert "\x1b" not in both
    assert "\u202e" not in both
    assert "\\x1b[2J" in both
    assert shown("a\udc80") == "a\\udc80"
    assert cli.main(["compress", str(source), "a\0b"]) == cli.BAD_INPUT
    assert "without NUL" in capsys.readouterr().err


def test_groups_that_divide_no_row_are_an_error(fixtures, tmp_path):
    import shutil

    shutil.copytree(fixtures / "quantised" / "gptq_v1", tmp_path / "src")
    config = tmp_path / "src" / "config.json"
    told = json.loads(config.read_text())
    size = told["quantization_config"]["group_size"]
    told["quantization_config"]["group_size"] = size - 1
    config.write_text(json.dumps(told))
    with pytest.raises(InputError):
        jentropy.open_checkpoint(tmp_path / "src", strict=True)


def test_a_folder_for_temporary_files_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    for put in (lambda: mapping.put_down([b"a"]), lambda: mapping.room(9)):
        with pytest.raises(InputError, match=r"none: cannot write a temporary file.*TMPDIR"):
            put()


def test_memory_is_asked_for_before(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available", lambda: 1 << 27)
    with pytest.raises(InputError, match=r"expected \d+ bytes of memory, found 134217728"):
        memory.expect(1 << 28)
    memory.expect(1 << 20)
    monkeypatch.setattr(memory, "SMALL", 1000)
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    jentropy.save(tmp_path / "t", {"w": np.zeros(1000, np.float32)})
    header = jentropy.load(tmp_path / "t")["w"].header
    monkeypatch.setattr(memory, "available", lambda: 2000)
    with pytest.raises(InputError, match="float32 tensor of"):
        jentropy.decompress(jentropy.load(tmp_path / "t"))
    assert header.raw_bytes == 4000


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX says so, and no more
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_children_of_a_process_that_used_jax_are_told(tmp_path):
    jnp.ones(3).block_until_ready()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        try:
            jentropy.compress(np.linspace(0, 1, 100_000, dtype=np.float32))
            queue.put("no error")
        except UnsupportedError as error:
            queue.put(str(error))

    process = context.Process(target=child)
    process.start()
    told = queue.get(timeout=60)
    process.join(60)
    assert "spawn" in told
    forks.expect_threads()  # not of the parent


def test_logging_is_left_alone(tmp_path):
    logger = logging.getLogger("absl")
    before = logger.level, list(logger.filters), logging.root.manager.disable
    jentropy.save(tmp_path / "t", {"w": np.ones(3)})
    jentropy.verify(tmp_path / "t")
    cli.main(["verify", str(tmp_path / "t"), "-q"])
    assert (logger.level, list(logger.filters), logging.root.manager.disable) == before


def test_modes_and_times_of_files_come_back(tmp_path):
    source = small(tmp_path / "src").parent
    (source / "run.sh").write_text("true")
    for name, mode in {"m.safetensors": 0o640, "run.sh": 0o755}.items():
        (source / name).chmod(mode)
        os.utime(source / name, ns=(10**18, 10**18 + 7))
    jentropy.compress_checkpoint(source, tmp_path / "dst")
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    for file in source.iterdir():
        ours, theirs = (tmp_path / "out" / file.name).stat(), file.stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)


def test_others_that_may_write_a_stage_are_refused(tmp_path):
    stage = tmp_path / ".dst.jentropy-compress"
    stage.mkdir()
    stage.chmod(0o777)
    (stage / "journal.jsonl").write_text("planted")
    with pytest.raises(InputError, match="others may write"):
        jentropy.compress_checkpoint(small(tmp_path / "src"), tmp_path / "dst")
    assert (stage / "journal.jsonl").read_text() == "planted"


def _soak(name: str, tmp_path: Path, *arguments: str) -> str:
    run = [sys.executable, "-m", f"tests.soak.{name}", str(tmp_path / "soak"), *arguments]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_errors_of_the_system_are_one_error(tmp_path):
    if not any((Path(folder) / "cc").exists() for folder in os.get_exec_path()):
        pytest.skip("no C compiler")
    commands = ("compress", "decompress", "open")
    told = _soak("errors", tmp_path, "--faults", "4", "--commands", *commands)
    assert [line.endswith(" 0 not as they should be") for line in told.splitlines()] == [True] * 3


def test_power_may_be_lost_at_any_time(tmp_path):
    from .soak import power

    moments, states, again = power.trial(tmp_path / "p", "compress", 2, seed=0)
    assert moments > 20
    assert states == 2 * moments
    assert again == 2


@pytest.mark.parametrize("parser", parsers.PARSERS)
def test_parsers_take_anything(parser):
    for data in parsers.corpus(parser):  # what once reached lines that nothing else did
        with suppress(JentropyError):
            parsers.PARSERS[parser][1](data)
    assert parsers.trial(parser, seconds=0.2, seed=0) > 10


CUT = """
import os, sys
from pathlib import Path
import jentropy
from jentropy.checkpoints import items, mapping
source, dst = map(Path, sys.argv[1:])
def cut_off(total):
    os.truncate(source, 5000)
items.space.least_bytes = lambda arrays: cut_off(list(arrays)) or 0
try:
    jentropy.compress_checkpoint(source, dst)
except jentropy.InputError as error:
    print(error)
print(dst.exists())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is for Linux")
def test_a_file_that_is_cut_off_while_it_is_mapped_is_an_error(tmp_path):
    tensors = {"a": ("U8", [1 << 20]), "b": ("BF16", [1 << 20])}
    source = tmp_path / "m.safetensors"
    write_safetensors(source, tensors, lambda n, size: [np.random.default_rng(n).bytes(size)])
    run = [sys.executable, "-c", CUT, str(source), str(tmp_path / "dst")]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    said, exists = done.stdout.splitlines()
    assert "m.safetensors: file: expected it unchanged" in said
    assert exists == "False"
