"""What a checkpoint holds before any dialect has read it: arrays, config, declared quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jentropy.containers import trees
from jentropy.errors import CorruptError, InputError
from jentropy.schema import ANY, OBJECT, parse

from .mapping import brought
from .remote import RemotePath

CONFIG, GENERATION = "config.json", "generation_config.json"
MODELOPT, GPTQ = "hf_quant_config.json", "quantize_config.json"  # sidecars of those tools
MISTRAL = "params.json"  # what Mistral's own checkpoints have for a config
TOKENIZER = "tokenizer.json"
# What a single file takes along.
CONFIGS = (CONFIG, GENERATION, MODELOPT, GPTQ, MISTRAL, TOKENIZER)
_KEYS = ("quantization_config", "compression_config")  # of config.json, or of a part of it
_DEPTH = 3  # of parts: thinker_config.text_config

PYTREE = Path("pytree")  # for messages

Shape = tuple[int, ...]
ReadText = Callable[[str], str | bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array as a file has it, unread.

    Attributes:
      name: its key.
      shape, dtype: of what `read` gives. What is narrower than a byte is uint8, flat.
      file: where it lies.
      packing: the file's name of how blocks of weights are packed in it, if it has one (GGUF).
      read: gives the array.
      part: gives slices of it, where no more is read than that; None: it is read whole.
      together: entries of each axis that are read as one, where they are more than that.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    file: Path
    packing: str = ""
    read: Callable[[], np.ndarray] = field(repr=False)
    part: Callable[[tuple[slice, ...]], np.ndarray] | None = field(default=None, repr=False)
    together: Shape = ()

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of what `read` gives."""
        return self.size * self.dtype.itemsize


def in_memory(name: str, values: np.ndarray, file: Path, packing: str = "") -> StoredArray:
    """An array that is in memory, or mapped."""
    return StoredArray(
        name=name,
        shape=values.shape,
        dtype=values.dtype,
        file=file,
        packing=packing,
        read=lambda: values,
        part=values.__getitem__,
    )


def elsewhere(
    name: str, shape: Shape, dtype: np.dtype, file: RemotePath, begin: int
) -> StoredArray:
    """An array in a file behind a URL, from a byte on; it is read when it is asked for."""
    a_row = math.prod(shape[1:]) * dtype.itemsize

    def rows(start: int, stop: int) -> np.ndarray:
        data = brought(file, begin + start * a_row, (stop - start) * a_row)
        return data.view(dtype).reshape(-1, *shape[1:])

    def read() -> np.ndarray:
        whole = brought(file, begin, math.prod(shape) * dtype.itemsize)
        return whole.view(dtype).reshape(shape)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, step = index[0].indices(shape[0]) if index else (0, 0, 0)
        if step != 1 or stop <= start or not a_row:
            return read()[index]
        return rows(start, stop)[(slice(None), *index[1:])]

    return StoredArray(name=name, shape=shape, dtype=dtype, file=file, read=read, part=part)


def of_leaf(name: str, leaf: Any) -> StoredArray:
    """A leaf of a pytree; what is compressed, on a device or on disk is read when asked for.

    Raises:
      InputError: no numeric array.
    """
    dtype = getattr(leaf, "dtype", None)
    if isinstance(leaf, np.ndarray | np.generic) or not isinstance(dtype, np.dtype):
        return in_memory(name, trees.as_array(leaf, name), PYTREE)
    return StoredArray(
        name=name,
        shape=tuple(leaf.shape),
        dtype=dtype,
        file=PYTREE,
        read=lambda: trees.as_array(trees.decompress(leaf), name),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """A checkpoint's arrays and what its config says of them.

    Attributes:
      source: for messages.
      arrays: by name, in the order of the files.
      config: `config.json`, with the keys of `generation_config.json` that it lacks.
      quantization: what the config or a sidecar declares, if anything does.
      declared_in: the file and key that declare it.
      metadata: `__metadata__` of the safetensors files.
      whole: False for a single file, which may be one shard of several.
      aside: names of scales that lie in files beside, or that an index leaves out.
      conflict: what a config and its sidecar say against each other; no quantised weight can be
        read then.
    """

    source: Path
    arrays: Mapping[str, StoredArray]
    config: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    declared_in: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True
    aside: tuple[str, ...] = ()
    conflict: InputError | None = None

    @property
    def quant_method(self) -> str | None:
        """The declared tool, in lower case."""
        method = (self.quantization or {}).get("quant_method")
        return method.lower() if isinstance(method, str) else None


def read_contents(
    source: Path,
    arrays: Iterable[StoredArray],
    read_text: ReadText,
    metadata: Mapping[str, str] | None = None,
    *,
    whole: bool = True,
    aside: tuple[str, ...] = (),
) -> Contents:
    """Reads the configs that lie beside the arrays.

    Args:
      read_text: gives a file beside the arrays, None if there is none.

    Raises:
      CorruptError: a config that is no JSON object.
    """
    config = _read_config(source, read_text)
    quantization, declared_in, conflict = _declared(source, config, read_text)
    return Contents(
        source=source,
        arrays={array.name: array for array in arrays},
        config=config,
        quantization=quantization,
        declared_in=declared_in,
        metadata=metadata or {},
        whole=whole,
        aside=aside,
        conflict=conflict,
    )


def read_json(path: Path, text: str | bytes) -> Any:
    """Parsed JSON.

    Args:
      path: where it was read, for messages.
      text: of a JSON document.

    Returns:
      What `json.loads` makes of it.

    Raises:
      CorruptError: it is no JSON.

    Example:
      >>> read_json(Path("config.json"), b'{"a": [1]}')
      {'a': [1]}
    """
    return parse(ANY, text, path)


def decode_text(file: Path, data: bytes) -> str:
    """UTF-8 text, or an error that names the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError("no UTF-8 text", file=file) from error


def _read_object(source: Path, name: str, read_text: ReadText) -> dict[str, Any] | None:
    text = read_text(name)
    return None if text is None else parse(OBJECT, text, source / name, "config")


def _read_config(source: Path, read_text: ReadText) -> dict[str, Any] | None:
    """`config.json` with the keys of `generation_config.json` that it lacks or has null."""
    config = _read_object(source, CONFIG, read_text)
    if config is None:
        return None
    merged = dict(_read_object(source, GENERATION, read_text) or {})
    merged.update({key: value for key, value in config.items() if value is not None})
    return {**dict.fromkeys(config), **merged}


def _declared(
    source: Path, config: Mapping[str, Any] | None, read_text: ReadText
) -> tuple[Mapping[str, Any] | None, str, InputError | None]:
    """The declared quantisation, where it is declared, and what contradicts it."""
    conflict = None
    declared, where = _in_config(config)
    sidecar = _read_object(source, MODELOPT, read_text)
    inner = sidecar.get("quantization") if sidecar else None
    method = (declared or {}).get("quant_method")
    if isinstance(inner, Mapping) and str(method or "modelopt").startswith("modelopt"):
        for key in ("quant_algo", "group_size"):
            ours, theirs = (declared or {}).get(key), inner.get(key)
            if None not in (ours, theirs) and str(ours).lower() != str(theirs).lower():
                conflict = InputError(
                    f"{key} of {MODELOPT}",
                    file=source,
                    expected=f"{ours} as in {where}",
                    found=theirs,
                )
        told = {key: value for key, value in (declared or {}).items() if value is not None}
        return {"quant_method": "modelopt", **inner, **told}, where or MODELOPT, conflict
    if declared is None and (old := _read_object(source, GPTQ, read_text)):
        return {"quant_method": "gptq", **old}, GPTQ, None
    if declared is None and (native := _read_native(source, read_text)):
        return {"quant_method": "mistral", **native}, f"{MISTRAL}: quantization", None
    return declared, where, None


def _read_native(source: Path, read_text: ReadText) -> Mapping[str, Any] | None:
    """The quantisation of Mistral's `params.json`, a name that others use as well."""
    try:
        told = (_read_object(source, MISTRAL, read_text) or {}).get("quantization")
    except CorruptError:
        return None
    return told if isinstance(told, Mapping) else None


def _in_config(config: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, str]:
    """What `config.json` declares: at its top, or else the one thing that its parts declare."""
    level: list[tuple[str, Any]] = [("", config)]
    for _ in range(_DEPTH):
        told = [
            (f"{path}{key}", part[key])
            for path, part in level
            for key in _KEYS
            if isinstance(part.get(key) if isinstance(part, Mapping) else None, Mapping)
        ]
        if told:
            where, declared = told[0]
            if all(other == declared for _, other in told):
                return declared, f"{CONFIG}: {where}"
            several = " and ".join(path for path, _ in told)
            return {"quant_method": f"several in {several}"}, f"{CONFIG}: {where}"
        level = [
            (f"{path}{key}.", inner)
            for path, part in level
            if isinstance(part, Mapping)
            for key, inner in part.items()
            if isinstance(inner, Mapping)
        ]
    mlx = (config or {}).get("quantization")
    if isinstance(mlx, Mapping) and {"bits", "group_size"} <= mlx.keys():
        return mlx, f"{CONFIG}: quantization"
    return None, ""
