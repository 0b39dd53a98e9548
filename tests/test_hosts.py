"""Processes of `jax.distributed` that write one checkpoint together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy.checkpoints.hosts import Team
from jentropy.checkpoints.mirrors import CACHE

from .object_store import Store, serving
from .soak.measuring import write_safetensors
from .soak.sources import alike

ROOT = Path(__file__).parent.parent


def source(folder: Path, seed: int = 0) -> Path:
    """A directory of a few files: weights that are coded, bytes that are stored."""
    rng = np.random.default_rng(seed)

    def fill(number: int, size: int):
        noise = rng.standard_normal(size // 2).astype(ml_dtypes.bfloat16)
        yield rng.bytes(size) if number % 3 == 0 else noise.tobytes()

    for part in range(2):
        tensors = {f"t{part}.{n}": ("U8" if n % 3 == 0 else "BF16", [1500]) for n in range(6)}
        write_safetensors(folder / f"model-{part}.safetensors", tensors, fill)
    (folder / "config.json").write_text("{}")
    return folder


def processes(folder: Path, count: int, what: str, *killed: object) -> list[tuple[int, str, str]]:
    """Runs so many; exit code, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-m", "tests.over_hosts", folder, address, count]
    started = [
        subprocess.Popen(
            [*map(str, command), str(number), what, *map(str, killed)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(started, ends, strict=True)]


def told_of(store: Store, folder: Path) -> dict[str, str]:
    """The environment of processes that write to an object store."""
    told = {"AWS_ENDPOINT_URL": store.url, "AWS_DEFAULT_REGION": "us-east-1"}
    told |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    return told | {CACHE: str(folder / "cache")}


def all_done(ends: list[tuple[int, str, str]]) -> None:
    for code, out, errors in ends:
        assert code == 0, (out, errors[-3000:])
        assert out.endswith("done\n")


def test_shares_are_of_all_bytes():
    assert Team().share([3, 4]) == [(0, 2)]
    assert Team(1, 4).share([9, 9, 9, 9]) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert Team(0, 3).share([100, 1]) == [(0, 1), (1, 1), (1, 2)]
    assert Team(0, 2).share([]) == [(0, 0), (0, 0)]


PAYLOADS = 17  # of the source
HALF_WAY = "os.mkdir /.dst.jentropy-compress-3-of-4/out/state/bundles.00001"
AT_THE_END = "os.rename /.dst.jentropy-compress/out"


@pytest.mark.parametrize(("count", "killed", "step"), [(4, 3, HALF_WAY), (2, 0, AT_THE_END)])
def test_one_is_killed_and_the_others_end(tmp_path, count, killed, step):
    """DST is not there, what was done stays, and the same command goes on from there."""
    source(tmp_path / "source")
    ends = processes(tmp_path, count, "compress", killed, step, 0)
    code, out, _ = ends.pop(killed)
    assert code == -9
    assert out.startswith(f"killed at {step}")
    for code, out, errors in ends:
        assert code != 0, out
        by_jax = "heartbeat" in errors or "coordination service" in errors
        assert "another process is gone" in out or by_jax, (out, errors[-2000:])
    assert not (tmp_path / "dst").exists()
    assert len(list(tmp_path.glob(".dst.jentropy-compress*"))) == count
    ends = processes(tmp_path, count, "compress")
    all_done(ends)
    payloads = sum(int(out.split()[0]) for _, out, _ in ends)
    assert payloads == 0 if step == AT_THE_END else 0 < payloads < PAYLOADS
    assert not list(tmp_path.glob(".dst*")), "a stage is left"
    assert jentropy.verify(tmp_path / "dst", tmp_path / "source").compared
    jentropy.decompress_checkpoint(tmp_path / "dst", tmp_path / "out")
    assert alike(tmp_path / "out", tmp_path / "source")


def test_arrays_over_processes_are_saved_and_loaded(tmp_path):
    all_done(processes(tmp_path, 2, "save+train"))
    packed = jentropy.load(tmp_path / "dst")
    assert packed.keys() == {"rows", "columns", "everywhere", "more", "last"}
    jentropy.verify(tmp_path / "dst")


def test_one_error_of_all(tmp_path):
    source(tmp_path / "source")
    source(tmp_path / "another")
    (tmp_path / "another" / "config.json").unlink()
    ends = processes(tmp_path, 2, "other")
    for code, out, _ in ends:
        assert code == 2
        assert "source: expected the same one in all processes, found another in" in out
    assert not (tmp_path / "dst").exists()


def test_each_sends_its_own(tmp_path, monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs of the extra 'remote' is not installed")
    source(tmp_path / "source")
    with serving() as store:
        for name, value in told_of(store, tmp_path).items():
            monkeypatch.setenv(name, value)
        all_done(processes(tmp_path, 2, "send"))
        assert jentropy.verify("s3://bucket/dst", tmp_path / "source").compared
        assert [key for method, key in store.requests if method == "PUT"][-1].endswith(
            "success.txt"
        )
