"""Sources on the Hugging Face hub: `hf://owner/name[@revision]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jentropy.errors import InputError, UnsupportedError

from . import indices
from .choosing import is_weights

SCHEME = "hf://"
UNREAD = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")  # no source of commands


def snapshot(url: str) -> Path:
    """The folder of a repository in the hub's cache, which is asked before the hub is.

    Raises:
      UnsupportedError: the extra `hub` is not installed.
      InputError: a repository that cannot be had.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UnsupportedError(
            "a source on the hub", file=url, hint="install the extra 'hub'"
        ) from error
    name, _, revision = url.removeprefix(SCHEME).rstrip("/").partition("@")

    def of(*, offline: bool) -> Path:
        told: Any = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            ignore_patterns=[*UNREAD],
            local_files_only=offline,
        )
        return Path(told)

    try:
        if is_whole(cached := of(offline=True)):
            return cached
    except Exception:  # not there
        pass
    try:
        return of(offline=False)
    except Exception as error:
        what = " ".join(str(error).split())
        raise InputError(f"cannot be downloaded: {what:.300}", file=url) from error


def is_whole(folder: Path) -> bool:
    """Whether a folder has weights, and all that an index of its own points to."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if not any(is_weights(name) or name.endswith("/c/0") for name in names):
        return False
    for name in names:
        if indices.PATTERN.fullmatch(name.rpartition("/")[2]):
            try:
                text = (folder / name).read_bytes()
                shards = indices.read_weight_map(folder / name, text).values()
            except InputError:  # who opens it says so
                continue
            above = name.rpartition("/")[0]
            if not {f"{above}/{shard}".lstrip("/") for shard in shards} <= names:
                return False
    return True
