"""Checkpoints into compressed checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jentropy.errors import InputError, place

from . import collecting, faults, torn
from .bases import Bases
from .entries import Entry
from .hosts import together
from .items import base_digest, fingerprint, with_base, write
from .manifest import collect
from .mirrors import destination, expect_same, resolve
from .opening import read_source
from .orbax_source import OrbaxSource
from .progress import Progress
from .remote import RemotePath
from .shared_stages import expect_free
from .sources import FileSource
from .store import is_compressed_checkpoint
from .writer import writing


@faults.told
def compress_checkpoint(
    src: str | Path,
    dst: str | Path,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    step: int | None = None,
    strict: bool = False,
    follow_links: bool = True,
    base: Bases = None,
) -> None:
    """Compresses a checkpoint, with every file that lies beside its weights.

    Work that was killed, was interrupted or failed is taken up by the next call with the same
    arguments: of each tensor that it finished, the source is read and held to its hashes again.

    Processes of `jax.distributed` call it together, for one checkpoint: each reads and writes a
    share of the tensors, in a folder that all of them share or to an object store.

    Args:
      src: a safetensors or GGUF file, a directory of such files, what Orbax wrote (the root of a
        `CheckpointManager`, a step, an item), or a URL of such (see `open_checkpoint`).
      dst: where the compressed checkpoint will appear, whole or not at all; a path, or a URL of an
        object store, where it cannot be read before its last file is there.
      progress: called with the bytes done since the last call; see `progress.Progress`.
      overwrite: whether a compressed checkpoint that is there is replaced, once this one is done.
      step: the only step of a manager's root that is wanted; None: all of them.
      strict: see `open_checkpoint`; every byte is kept either way.
      follow_links: whether links in the source are read as what they lead to; otherwise one is an
        error.
      base: see `save`.

    Raises:
      InputError: a source that cannot be read, by file and tensor.
      DestinationError: `dst` exists or cannot be written.

    Example:
      >>> import tempfile, jentropy
      >>> from pathlib import Path
      >>> header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = Path(name)
      ...     source = folder / "model.safetensors"
      ...     _ = source.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
      ...     jentropy.compress_checkpoint(source, folder / "packed")
      ...     jentropy.open_checkpoint(folder / "packed").tensor("w").codes["code"].tolist()
      [97, 98, 99, 100]
    """
    target = destination(dst)
    with together(place(target)) as team:
        expect_free(target, team, overwrite=overwrite)
        source = resolve(src)
        _refuse_nested(source, target, overwrite=overwrite)
        with collecting.put_off():
            files = read_source(source, step, follow_links=follow_links)
            manifest = collect(files, strict=strict)
        before = _state(files)
        items, below = with_base(manifest.items, base)
        state = fingerprint(str(place(files.root.resolve())), below)

        def contents(entries: Sequence[Entry]) -> dict[str, Any]:
            return {
                "tensors": tuple(entries[n] for n in manifest.tensors),
                "base": base_digest((entries[n] for n in manifest.tensors), below),
                "blobs": tuple(entries[n] for n in manifest.blobs),
                "files": tuple(manifest.files),
                "beside": files.beside(),
                "tree": manifest.tree,
                "stores": tuple(manifest.stores),
                "formats": manifest.formats,
                "weights": manifest.weights,
            }

        seldom = collecting.seldom()
        with seldom, writing(target, team, state, overwrite=overwrite) as writer:
            entries = write(writer, items, progress)
            torn.expect_whole(files.root)
            if _state(files) != before:
                raise _changed(source)
            expect_same(source)
            with collecting.put_off():
                writer.finish(entries, contents)


def _refuse_nested(source: Path, target: Path, *, overwrite: bool) -> None:
    """Raises InputError where source and destination are in each other's way."""
    if overwrite and source.resolve().is_relative_to(target.resolve()):
        raise InputError("source lies inside the destination", file=source)
    if is_compressed_checkpoint(source):
        raise InputError("already a compressed checkpoint", file=source)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise InputError("destination lies inside the source", file=target)


def _state(source: FileSource | OrbaxSource) -> list[tuple[str, int, int]]:
    """Changes with any file of the source that is written while it is read.

    Of what a URL leads to `expect_same` tells.
    """
    if isinstance(source.root, RemotePath):
        return []
    try:
        stats = [(name, (source.root / name).stat()) for name in source.files]
    except OSError as error:
        raise _changed(source.root) from error
    return [(name, told.st_size, told.st_mtime_ns) for name, told in stats]


def _changed(source: Path) -> InputError:
    return InputError("files changed while they were being compressed", file=source)
