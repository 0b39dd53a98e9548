"""`open_checkpoint`: the one door to every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

from jentropy.errors import InputError

from . import collecting, faults
from .archived import inside_archive
from .bases import Bases
from .checkpoint import Checkpoint
from .compressed import CompressedCheckpoint
from .mirrors import located, resolve
from .orbax_source import OrbaxSource, is_orbax, read_orbax
from .sources import FileSource, read_file_source
from .store import is_compressed_checkpoint


@faults.told
def open_checkpoint(
    path: str | Path, *, step: int | None = None, strict: bool = False, base: Bases = None
) -> Checkpoint:
    """Opens a checkpoint lazily.

    Args:
      path: a safetensors or GGUF file, a directory of such files (in Hugging Face form, with
        `config.json` or without, or a pipeline of several), what Orbax wrote (the root of a
        `CheckpointManager`, a step, an item), a compressed checkpoint, a file or folder in one
        (`DST/unet`), or a URL (`mirrors`): `gs://`, `s3://`, `https://`, `hf://owner/name`.
      step: the only step of a manager's root that is wanted; None: all of them.
      strict: whether a quantised weight that contradicts what its config declares, or that lacks a
        part, is an error; otherwise it is RAW, as one of an unknown method is in any case, and
        `.notes` and its `.note` say why.
      base: of a compressed checkpoint, see `load`.

    Returns:
      A `Checkpoint`: `.names()`, `.tensor(name)`, `.config`, `.notes`.

    Raises:
      InputError: what is there cannot be read, by file and tensor.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.ones(3, np.float16)})
      ...     tensor = jentropy.open_checkpoint(f"{folder}/t").tensor("w")
      ...     tensor.dequantize(np.float32).tolist()
      [1.0, 1.0, 1.0]
    """
    place = located(path)
    inside = inside_archive(place)
    source = resolve(place) if inside is None else inside[0]
    if source.is_dir() and is_compressed_checkpoint(source):
        if step is not None:
            raise InputError(
                f"step {step}", file=source, expected="the source", found="a compressed checkpoint"
            )
        return CompressedCheckpoint(*(inside or (source,)), strict=strict, base=base)
    with collecting.put_off():
        view = read_source(source, step).view(strict=strict)
    return Checkpoint(source, view.tensors, view.config, view.notes)


def read_source(
    path: Path, step: int | None = None, *, follow_links: bool = True
) -> FileSource | OrbaxSource:
    """What a path holds that is no compressed checkpoint, read without its arrays.

    Args:
      step: the only step of a manager's root that is wanted; None: all of them.
      follow_links: see `sources.walk`.

    Raises:
      InputError: what is there cannot be read; a step of what is no manager's root.
    """
    if step is not None or is_orbax(path):
        return read_orbax(path, step, follow_links=follow_links)
    return read_file_source(path, follow_links=follow_links)
