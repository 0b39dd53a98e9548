"""Sources on the Hugging Face hub: `hf://owner/name[@revision]`."""

from __future__ import annotations

from pathlib import Path

from jentropy.errors import InputError, UnsupportedError

SCHEME = "hf://"


def resolve(source: str | Path) -> Path:
    """The local path of a source, which is there; one on the hub is downloaded to its cache first.

    Raises:
      UnsupportedError: a hub source without the extra `hub`.
      InputError: nothing at this path, or a repository that cannot be had.
    """
    text = str(source)
    if not text.startswith(SCHEME):
        path = Path(source)
        if not text or not path.exists():
            raise InputError("no such file or directory", file=path if text else "''")
        return path
    try:
        import huggingface_hub
    except ImportError as error:
        raise UnsupportedError(
            "a source on the hub", file=text, hint="install the extra 'hub'"
        ) from error
    name, _, revision = text.removeprefix(SCHEME).partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision or None,
                ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack"],
            )
        )
    except Exception as error:
        raise InputError(f"cannot be downloaded: {error}", file=text) from error
