"""Compressed checkpoints in vLLM, on GPUs and, by tpu-inference, on TPUs.

vLLM has a loader for each *load format*, which others may add; the loader of `jentropy` gives its
models the arrays of a compressed checkpoint as it would give those of the original files, by the
same names and bit for bit. Weights are decoded as they are asked for, one after the other: no file
of the original size is written or read. On the device they are as large as vLLM makes them.

vLLM finds this module by its entry point. It wants a directory with `config.json` and a tokenizer
beside the weights, which `serving_directory` writes:

    python -c "import jentropy.checkpoints.serving as s; s.serving_directory('packed', 'served')"
    vllm serve served --load-format jentropy
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.errors import InputError, UnsupportedError

from .compressed import CompressedCheckpoint
from .contents import read_json
from .decoding import read_entries, read_entry
from .faults import read_file, writing
from .opening import open_checkpoint

LOAD_FORMAT = "jentropy"
POINTER = "jentropy.json"  # in a directory that is served: {"checkpoint": path}
_WEIGHTS = (".safetensors.index.json", ".bin.index.json")  # of files that are not there


def serving_directory(checkpoint: str | Path, out: str | Path) -> None:
    """Writes what a server reads beside the weights, and where the weights are.

    Args:
      checkpoint: a compressed checkpoint of a Hugging Face directory.
      out: a directory, which must not exist: `config.json`, the tokenizer's files and all others
        that hold no weights, and `jentropy.json`, which names the checkpoint.

    Raises:
      InputError: no compressed checkpoint, or one without `config.json`.
      DestinationError: `out` exists or cannot be written.

    Example:
      >>> import tempfile, jentropy
      >>> header = b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}'
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = Path(name)
      ...     (folder / "model").mkdir()
      ...     _ = (folder / "model" / "config.json").write_text("{}")
      ...     data = len(header).to_bytes(8, "little") + header + b"abcd"
      ...     _ = (folder / "model" / "model.safetensors").write_bytes(data)
      ...     jentropy.compress_checkpoint(folder / "model", folder / "packed")
      ...     serving_directory(folder / "packed", folder / "served")
      ...     sorted(path.name for path in (folder / "served").iterdir())
      ['config.json', 'jentropy.json']
    """
    opened, out = _compressed(checkpoint), Path(out)
    if opened.config is None:
        raise InputError("no config.json", file=opened.source, hint="a server needs one")
    store = opened.store
    with writing(out):
        out.mkdir(parents=True)
        for file in store.index.files:
            if file.parts is None and not file.path.endswith(_WEIGHTS):
                target = out / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(read_entry(store, store.index.blobs[file.blob]).tobytes())
        pointer = {"checkpoint": str(store.path.resolve())}
        (out / POINTER).write_text(json.dumps(pointer) + "\n")


def served_checkpoint(directory: str | Path) -> Path:
    """The compressed checkpoint of a directory that is served.

    Args:
      directory: what `serving_directory` wrote, or a compressed checkpoint itself.

    Raises:
      InputError: neither.
    """
    directory = Path(directory)
    if not (directory / POINTER).is_file():
        return directory
    pointer = read_json(directory / POINTER, read_file(directory / POINTER))
    path = pointer.get("checkpoint")
    if not isinstance(path, str):
        raise InputError(
            "checkpoint", file=directory / POINTER, expected="a path", found=f"{path!r:.60}"
        )
    return directory / path  # which a relative one begins from


def stored_arrays(checkpoint: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of the original files, by name and bit for bit, one after the other.

    Codes and scales of quantised weights are arrays of their own, as the files have them.

    Args:
      checkpoint: a compressed checkpoint.

    Yields:
      Names and arrays, which are decoded when they are asked for.

    Raises:
      UnsupportedError: arrays of packed blocks, as GGUF has, which are none outside of it.
    """
    opened = _compressed(checkpoint)
    entries = {}
    for name, parts in opened.arrays.items():
        if list(parts) != [name]:
            raise UnsupportedError(
                "arrays to serve",
                file=opened.source,
                tensor=name,
                expected="whole ones",
                found="blocks of fields",
            )
        entries[name] = parts[name]
    yield from zip(entries, read_entries(opened.store, entries.values()), strict=True)


def _compressed(path: str | Path) -> CompressedCheckpoint:
    opened = open_checkpoint(path)
    if not isinstance(opened, CompressedCheckpoint):
        raise InputError(
            "checkpoint", file=path, expected="a compressed one", found="an uncompressed one"
        )
    return opened


def as_torch(array: np.ndarray) -> Any:
    """An array as a tensor of PyTorch, which shares its memory; of the same dtype and bits."""
    import torch

    array = np.require(array, requirements=["C", "W"])
    if array.dtype.isbuiltin == 1:  # of NumPy itself
        return torch.from_numpy(array)
    codes = torch.from_numpy(array.view(f"u{array.dtype.itemsize}"))
    return codes.view(getattr(torch, array.dtype.name))


def register() -> None:
    """Adds the load format `jentropy` to vLLM; the entry point of group `vllm.general_plugins`."""
    from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader

    class CompressedLoader(BaseModelLoader):
        """Of compressed checkpoints; `model_loader_extra_config` may name one: `checkpoint`."""

        def _path(self, model_config: Any) -> Path:
            extra = self.load_config.model_loader_extra_config or {}
            return served_checkpoint(extra.get("checkpoint", model_config.model))

        def download_model(self, model_config: Any) -> None:
            """Nothing: it is here, or the path is wrong."""
            _compressed(self._path(model_config))

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Gives a model all arrays; of plain weights it must take as many as it has."""
            arrays = stored_arrays(self._path(model_config))
            loaded = model.load_weights((name, as_torch(array)) for name, array in arrays)
            if loaded is None or getattr(model_config, "quantization", None) is not None:
                return
            missing = {name for name, _ in model.named_parameters()} - set(loaded)
            if missing:
                raise InputError(
                    f"weights of the model that are not in the checkpoint: {sorted(missing)[:4]}",
                    file=self._path(model_config),
                )

    register_model_loader(LOAD_FORMAT)(CompressedLoader)
