"""Errors of the system at every call of every command: one JentropyError that names the right file.

A small library (C, `LD_PRELOAD`) makes the nth call of open, read, write, fsync, rename, mkdir or
truncate fail that is about the trial's folder, whoever makes it: Python, NumPy or TensorStore.
After each, the destination is absent or whole, and the same command without an error ends well.

    python -m tests.soak.errors FOLDER [--faults 200] [--seed 0] [--commands compress ...]
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

import jentropy
from jentropy.errors import JentropyError

from .sources import alike, noise, same_arrays

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ENOENT)
MOST_TEXT = 600  # characters of a message, with paths in it
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096], hit_path[4096];
static long wanted = -1, seen;
static int error;

void fault_arm(const char *path, long nth, int code) {
    strncpy(folder, path, sizeof folder - 1);
    seen = 0; error = code; hit_path[0] = 0; wanted = nth;
}
long fault_seen(void) { return seen; }
const char *fault_path(void) { return hit_path; }

static int fails(const char *path) {
    if (wanted < 0 || !path || strncmp(path, folder, strlen(folder))) return 0;
    if (__sync_add_and_fetch(&seen, 1) != wanted) return 0;
    strncpy(hit_path, path, sizeof hit_path - 1);
    errno = error;
    return 1;
}
static int fails_fd(int fd) {
    char link[64], path[4096];
    ssize_t size;
    int before = errno;
    if (wanted < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size < 0) return 0;
    path[size] = 0;
    return fails(path);
}
#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

int open(const char *path, int flags, ...) {
    MODE REAL(int, open, const char *, int, ...);
    return fails(path) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE REAL(int, open64, const char *, int, ...);
    return fails(path) ? -1 : real(path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE REAL(int, openat, int, const char *, int, ...);
    return fails(path) ? -1 : real(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE REAL(int, openat64, int, const char *, int, ...);
    return fails(path) ? -1 : real(at, path, flags, mode);
}
ssize_t read(int fd, void *to, size_t size) {
    REAL(ssize_t, read, int, void *, size_t);
    return fails_fd(fd) ? -1 : real(fd, to, size);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) {
    REAL(ssize_t, pread, int, void *, size_t, off_t);
    return fails_fd(fd) ? -1 : real(fd, to, size, at);
}
ssize_t pread64(int fd, void *to, size_t size, off64_t at) {
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    return fails_fd(fd) ? -1 : real(fd, to, size, at);
}
ssize_t write(int fd, const void *from, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return fails_fd(fd) ? -1 : real(fd, from, size);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return fails_fd(fd) ? -1 : real(fd, from, size, at);
}
int fsync(int fd) { REAL(int, fsync, int); return fails_fd(fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(int, fdatasync, int); return fails_fd(fd) ? -1 : real(fd); }
int ftruncate64(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    return fails_fd(fd) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    return fails(from) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    return fails(path) ? -1 : real(path, mode);
}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    library = folder.parent / f"{folder.name}.faults.so"
    if "LD_PRELOAD" not in os.environ:
        folder.parent.mkdir(parents=True, exist_ok=True)
        build = ["cc", "-shared", "-fPIC", "-O1", "-w", "-x", "c", "-", "-o", str(library), "-ldl"]
        subprocess.run(build, input=SOURCE.encode(), check=True)
        os.environ["LD_PRELOAD"] = str(library)
        os.execv(sys.executable, [sys.executable, "-m", "tests.soak.errors", *sys.argv[1:]])
    try:
        for command in given.commands:
            told = trial(folder, command, given.faults, given.seed)
            print(f"{command}: {told}", flush=True)
    finally:
        library.unlink(missing_ok=True)


def steps(folder: Path) -> None:
    """A source that Orbax writes, of arrays that are stored as they are."""
    from orbax.checkpoint import v1

    rng = np.random.default_rng(0)
    v1.save(folder / "source", {f"w{n}": rng.integers(0, 256, 9000, np.uint8) for n in range(5)})


def _compress(folder: Path) -> None:
    jentropy.compress_checkpoint(folder / "source", folder / "dst")


def _decompress(folder: Path) -> None:
    jentropy.decompress_checkpoint(folder / "packed", folder / "dst")


def _salvage(folder: Path) -> None:
    found = jentropy.salvage(folder / "packed", folder / "dst").damage
    if found:  # what cannot be read counts as damaged
        shutil.rmtree(folder / "dst")
        raise found[0]


def _load(folder: Path) -> None:
    jentropy.decompress(jentropy.load(folder / "packed"))


def _save(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tree = {f"w{n}": rng.integers(0, 256, 9000, np.uint8) for n in range(5)}
    jentropy.save(folder / "dst", tree)


def _delta(folder: Path) -> None:
    jentropy.compress_checkpoint(folder / "source", folder / "dst", base=folder / "packed")


def _model(folder: Path) -> Path:
    """The bundled model."""
    shutil.copytree(jentropy.models.BUNDLED, folder / "source")
    return folder / "source"


def _generate(folder: Path) -> None:
    models = jentropy.models
    models.load_tokenizer(folder / "packed")
    models.load_chat_template(folder / "packed")
    models.load(folder / "packed")


def _quantize(folder: Path, tool: str | None = None) -> None:
    recipe = jentropy.quantization.RECIPES["rtn-int8"]
    models = jentropy.models
    models.quantizing.quantize_checkpoint(folder / "source", folder / "dst", recipe, tool=tool)


COMMANDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "compress": (noise, _compress),
    "decompress": (noise, _decompress),
    "compress-orbax": (steps, _compress),
    "decompress-orbax": (steps, _decompress),
    "verify": (noise, lambda f: jentropy.verify(f / "packed", against=f / "source")),
    "inspect": (noise, lambda f: jentropy.inspect(f / "packed")),
    "open": (noise, lambda f: list(jentropy.open_checkpoint(f / "source").read_all())),
    "load": (noise, _load),
    "salvage": (noise, _salvage),
    "analyze": (noise, lambda f: jentropy.analyze(f / "source")),
    "save": (noise, _save),
    "delta": (noise, _delta),
    "generate": (_model, _generate),
    "quantize": (_model, _quantize),
    "export": (_model, lambda f: _quantize(f, "compressed-tensors")),
}
READS = {"verify", "inspect", "open", "load", "analyze", "generate"}
WRITES = COMMANDS.keys() - READS


def _child(run: Callable[[], object], arm: Callable[[], None] = lambda: None) -> dict:
    """Runs something in a child; what became of it."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        told: dict = {}
        faults = ctypes.CDLL(None)
        faults.fault_path.restype = ctypes.c_char_p
        faults.fault_seen.restype = ctypes.c_long
        try:
            arm()
            run()
            told = {"kind": "done"}
        except JentropyError as error:
            told = {"kind": "error", "text": str(error), "class": type(error).__name__}
        except BaseException:
            told = {"kind": "raw", "text": traceback.format_exc()}
        told |= {"seen": faults.fault_seen(), "path": os.fsdecode(faults.fault_path())}
        faults.fault_arm(b"", -1, 0)
        os.write(writes, json.dumps(told).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"kind": "died", "text": "", "path": "", "seen": 0}


def trial(folder: Path, command: str, faults: int, seed: int) -> str:
    """Makes calls of a command fail; what was found, in words."""
    from orbax.checkpoint import v1  # noqa: F401  loaded before children are made

    make, run = COMMANDS[command]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def prepare() -> None:
        make(folder)
        jentropy.compress_checkpoint(folder / "source", folder / "packed")

    made = _child(prepare)
    assert made["kind"] == "done", made["text"]

    def arm(nth: int, code: int) -> Callable[[], None]:
        return lambda: ctypes.CDLL(None).fault_arm(
            os.fsencode(folder) + b"/", ctypes.c_long(nth), code
        )

    calls = _child(lambda: run(folder), arm(1 << 40, 0))
    assert calls["kind"] == "done", calls["text"]
    wanted = folder / "wanted"
    if command in WRITES:
        (folder / "dst").rename(wanted)
    dice, count = random.Random(seed), dict.fromkeys(("error", "done"), 0)
    bad = []
    for number in range(faults):
        nth, code = dice.randint(1, calls["seen"]), ERRORS[number % len(ERRORS)]
        told = _child(lambda: run(folder), arm(nth, code))
        count[told["kind"]] = count.get(told["kind"], 0) + 1
        if told["kind"] not in ("error", "done") or not _tells(told, folder):
            bad.append((nth, errno.errorcode[code], told))
            print(command, nth, errno.errorcode[code], json.dumps(told)[:1500], flush=True)
        if command in WRITES:
            _expect_whole(folder / "dst", wanted, command)
            again = _child(lambda: run(folder)) if not (folder / "dst").exists() else told
            if again["kind"] == "raw":
                print("again:", again["text"], flush=True)
            _expect_whole(folder / "dst", wanted, command, there=True)
            shutil.rmtree(folder / "dst")
    shutil.rmtree(folder)
    return f"{faults} faults of {calls['seen']} calls, {count}, {len(bad)} not as they should be"


def _tells(told: dict, folder: Path) -> bool:
    """Whether an error is short and names what it is about."""
    if told["kind"] == "done":
        return True
    path, text = Path(told["path"]), told["text"]
    inside = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else ""
    top = "dst" if inside.startswith(".dst") else inside
    return len(text) < MOST_TEXT and str(folder / top) in text


def _expect_whole(ours: Path, wanted: Path, command: str, *, there: bool = False) -> None:
    assert ours.exists() or not there, f"{ours} is not there"
    if ours.exists():
        same = same_arrays if command == "decompress-orbax" else alike
        told = _child(lambda: _assert(same(ours, wanted)))
        assert told["kind"] == "done", f"{ours} is not what it should be"


def _assert(holds: bool) -> None:
    assert holds


if __name__ == "__main__":
    main()
