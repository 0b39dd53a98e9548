"""What a path holds: a safetensors file, a Hugging Face directory, or something to refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jentropy.errors import CorruptError, InputError, UnsupportedError

from . import gguf_files, safetensors
from .contents import CONFIGS, Contents, StoredArray, decode_text, read_contents, read_json
from .safetensors import SafetensorsFile, StoredTensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """The files of a checkpoint in Hugging Face form.

    Attributes:
      root: the directory, or that of a single file.
      files: every file, as a path relative to root, sorted.
      model: the safetensors files that make up the model, relative to root; or a GGUF file.
      stored: the model's tensors by name.
      metadata: `__metadata__` of the model's files.
      whole: False for a single file, which may be one shard of several.
    """

    root: Path
    files: tuple[str, ...]
    model: tuple[str, ...]
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True

    def contents(self) -> Contents:
        """What a dialect reads.

        Raises:
          InputError: a config that cannot be read, or one that contradicts its sidecar.
        """
        if is_gguf(self.model):
            return gguf_files.read(self.root / self.model[0]).contents()
        return read_contents(
            self.root,
            (_array(tensor) for tensor in self.stored.values()),
            self._read,
            self.metadata,
            whole=self.whole,
        )

    def beside(self) -> dict[str, str]:
        """Configs that lie beside a single file, which is nothing without them."""
        if self.whole:
            return {}
        found = {name: self._read(name) for name in CONFIGS}
        return {name: decode_text(self.root / name, data) for name, data in found.items() if data}

    def _read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None


def is_gguf(model: tuple[str, ...]) -> bool:
    """Whether the files of a model are one GGUF file."""
    return len(model) == 1 and model[0].endswith(gguf_files.SUFFIX)


def _array(tensor: StoredTensor) -> StoredArray:
    values = tensor.values
    return StoredArray(
        name=tensor.name,
        shape=tuple(values.shape),
        dtype=values.dtype,
        file=tensor.file,
        read=lambda: values,
    )


def read_file_source(path: Path) -> FileSource:
    """Reads the headers of a safetensors file or of a directory's model files.

    Raises:
      InputError: no checkpoint, a missing shard, a pickle; whatever `safetensors.read` raises.
    """
    if path.is_file() and path.suffix == gguf_files.SUFFIX:
        return FileSource(root=path.parent, files=(path.name,), model=(path.name,), whole=False)
    if path.is_file():
        _refuse_unknown_file(path)
        name = path.name
        single = safetensors.read(path)
        return FileSource(
            root=path.parent,
            files=(name,),
            model=(name,),
            stored={t.name: t for t in single.tensors},
            metadata=single.metadata,
            whole=False,
        )
    files = tuple(walk(path))
    model, weight_map = _model_files(path, files)
    if is_gguf(model):
        return FileSource(root=path, files=files, model=model)
    opened = {name: safetensors.read(path / name) for name in model}
    stored = _by_index(path, weight_map, opened) if weight_map else _by_file(opened)
    metadata = {key: text for file in opened.values() for key, text in file.metadata.items()}
    return FileSource(root=path, files=files, model=model, stored=stored, metadata=metadata)


def _refuse_unknown_file(path: Path) -> None:
    if path.suffix in PICKLES:
        raise UnsupportedError(
            "pickled weights",
            file=path,
            expected="safetensors",
            found=path.suffix,
            hint="pickles can run code; convert it with safetensors",
        )
    if path.suffix != ".safetensors":
        raise UnsupportedError(
            "file",
            file=path,
            expected="a .safetensors or .gguf file",
            found=path.suffix or "no suffix",
        )


def walk(root: Path) -> list[str]:
    """Every file below root, links followed, as sorted relative paths."""

    def visit(folder: Path, above: frozenset[str]) -> Iterator[str]:
        real = os.path.realpath(folder)
        if real in above:
            raise InputError("a link that leads around in a circle", file=folder)
        try:
            inside = list(folder.iterdir())
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=folder) from error
        for path in inside:
            if path.is_dir():
                yield from visit(path, above | {real})
            elif path.is_file():
                yield path.relative_to(root).as_posix()
            else:
                raise InputError("not a file", file=path, expected="a regular file", found="none")

    return sorted(visit(root, frozenset()))


def _model_files(
    root: Path, files: tuple[str, ...]
) -> tuple[tuple[str, ...], Mapping[str, str] | None]:
    """The model's safetensors files and, if there is an index, where it says each tensor lies."""
    top = [name for name in files if "/" not in name]
    indices = [name for name in top if name.endswith(INDEX_SUFFIX)]
    if f"model{INDEX_SUFFIX}" in indices:
        indices = [f"model{INDEX_SUFFIX}"]
    if len(indices) > 1:
        raise InputError("several indices", file=root, expected="one", found=", ".join(indices))
    if indices:
        weight_map = _read_index(root / indices[0])
        for tensor, shard in weight_map.items():
            if shard not in files:
                raise InputError(
                    f"missing shard {shard}",
                    file=root / indices[0],
                    tensor=tensor,
                    expected=f"the file {root / shard}",
                    found="none",
                )
        return tuple(sorted(set(weight_map.values()))), weight_map
    model = [name for name in top if name.endswith(".safetensors")]
    if "model.safetensors" in model:
        model = ["model.safetensors"]
    ggufs = [name for name in top if name.endswith(gguf_files.SUFFIX)]
    if not model and len(ggufs) == 1:
        return tuple(ggufs), None
    if not model:
        pickles = [name for name in top if Path(name).suffix in PICKLES]
        if pickles:
            _refuse_unknown_file(root / pickles[0])
        raise InputError(
            "no checkpoint",
            file=root,
            expected="safetensors files, one GGUF file or an Orbax checkpoint",
            found=", ".join(top[:4]) + (", ..." if len(top) > 4 else "") if top else "no files",
        )
    return tuple(model), None


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path, path.read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise CorruptError(
            "index", file=path, expected="a weight_map of names to files", found=f"{index!r:.60}"
        )
    return weight_map


def _by_index(
    root: Path, weight_map: Mapping[str, str], opened: Mapping[str, SafetensorsFile]
) -> dict[str, StoredTensor]:
    inside = {shard: {t.name: t for t in file.tensors} for shard, file in opened.items()}
    for name, shard in weight_map.items():
        if name not in inside[shard]:
            raise InputError(
                "tensor of the index",
                file=root / shard,
                tensor=name,
                expected="it in this shard",
                found="no such tensor",
            )
    return {name: inside[shard][name] for name, shard in weight_map.items()}


def _by_file(opened: Mapping[str, SafetensorsFile]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in opened.values():
        for tensor in file.tensors:
            if tensor.name in stored:
                raise InputError(
                    "tensor in two files",
                    file=file.path,
                    tensor=tensor.name,
                    expected="one",
                    found=f"another in {stored[tensor.name].file.name}",
                )
            stored[tensor.name] = tensor
    return stored
