"""The tree of an item that Orbax wrote: which array, number or text lies at which path.

Orbax tells of it in `_METADATA` (keys, and the type of each leaf), `_strings.json` (texts) and
`array_metadatas` (which arrays are keys of a random generator). An item of another kind that is one
JSON file is a tree of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jentropy.errors import CorruptError, InputError

from . import structure
from .array_store import ZarrArray
from .contents import read_json
from .structure import Json, Stored

METADATA, STRINGS, ARRAYS = "_METADATA", "_strings.json", "array_metadatas"
COMMITTED = "commit_success.txt"
SEQUENCE = 1  # type of a key; any other is a dict's
EMPTY: Mapping[str, Any] = {
    "placeholder": None,
    "None": None,
    "NamedTuple": None,  # as Orbax gives it back
    "Dict": {},
    "List": [],
    "Tuple": (),
}
MAX_JSON_BYTES = 1 << 24  # of an item that is shown as a tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """What a stored array was in the tree that was saved."""

    jax: bool = False  # a JAX array, else NumPy's
    scalar: bool = False  # a Python number
    key: str = ""  # implementation of the random keys that it holds


ARRAY = Leaf()


def stores_every_chunk(folder: Path) -> bool:
    """Whether Orbax wrote chunks that equal the fill value too, so that a missing one is a loss."""
    told = _read(folder / METADATA)
    return isinstance(told, dict) and bool(told.get("store_array_data_equal_to_fill_value"))


def of_store(folder: Path, arrays: Sequence[ZarrArray], first: int) -> tuple[Any, dict[int, Leaf]]:
    """The structure of an item.

    Args:
      arrays: of its store.
      first: number of the first of them.

    Returns:
      The tree, and the arrays' leaves by number.

    Raises:
      InputError: a tree of which an array or a text is not there.
      CorruptError: metadata that are not as Orbax writes them.
    """
    numbers = {array.name: first + n for n, array in enumerate(arrays)}
    told = _read(folder / METADATA)
    if told is None:
        return {name: Stored(n) for name, n in numbers.items()}, {}
    texts = _read(folder / STRINGS) or {}
    keys = _random_keys(folder)
    root: _Node = _Node()
    leaves: dict[int, Leaf] = {}
    try:
        for entry in told["tree_metadata"].values():
            path = [(k["key"], k["key_type"]) for k in entry["key_metadata"]]
            kind = entry["value_metadata"]["value_type"]
            name = ".".join(key for key, _ in path)
            if kind in EMPTY:
                root.put(path, EMPTY[kind])
            elif kind == "string" and isinstance(texts.get(name), str):
                root.put(path, texts[name])
            elif name in numbers:
                root.put(path, Stored(numbers[name]))
                leaves[numbers[name]] = Leaf(
                    jax=kind == "jax.Array", scalar=kind == "scalar", key=keys.get(name, "")
                )
            else:
                raise InputError(
                    f"{kind} of the tree",
                    file=folder,
                    tensor=name,
                    expected="it in this folder",
                    found="none; the checkpoint is not complete",
                )
        return root.tree(), leaves
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(
            "the tree's metadata",
            file=folder / METADATA,
            expected="what Orbax writes",
            found=f"{type(error).__name__}: {error}",
        ) from error


class _Node:
    """A node of a tree that is put together path by path."""

    def __init__(self) -> None:
        self.children: dict[Any, _Node] = {}
        self.is_sequence = True
        self.leaf: list[Any] = []

    def put(self, path: Sequence[tuple[str, int]], leaf: Any) -> None:
        node = self
        for key, kind in path:
            node.is_sequence &= kind == SEQUENCE
            node = node.children.setdefault(int(key) if kind == SEQUENCE else key, _Node())
        node.leaf.append(leaf)

    def tree(self, depth: int = 0) -> Any:
        if depth > structure.MAX_DEPTH or len(self.leaf) + bool(self.children) > 1:
            raise ValueError("two leaves of one path, or too deep a tree")
        if self.leaf:
            return self.leaf[0]
        found = {key: child.tree(depth + 1) for key, child in self.children.items()}
        if found and self.is_sequence and sorted(found) == list(range(len(found))):
            return [found[n] for n in range(len(found))]
        return found


def _random_keys(folder: Path) -> dict[str, str]:
    """Implementations of the arrays that are keys of a random generator, by name."""
    found: dict[str, str] = {}
    for file in sorted((folder / ARRAYS).glob("*")):
        told = _read(file)
        for entry in told.get("array_metadatas", ()) if isinstance(told, dict) else ():
            one = _get(entry, "array_metadata")
            impl = _get(_get(one, "ext_metadata"), "random_key_impl")
            if isinstance(impl, str):
                found[str(_get(one, "param_name"))] = impl
    return found


def _get(told: Any, key: str) -> Any:
    return told.get(key) if isinstance(told, dict) else None


def of_files(root: Path, folder: str, kept: Sequence[str]) -> Any:
    """The tree of an item that is one JSON file; None if it is something else."""
    above = f"{folder}/"
    inside = [name for name in kept if name.startswith(above)]
    told = [name for name in inside if name != f"{above}{COMMITTED}"]
    if not folder or len(told) != 1 or Path(folder).name == ARRAYS:
        return None
    file = root / told[0]
    if file.name.startswith("_") or file.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        return Json(json.loads(file.read_bytes()))
    except (ValueError, RecursionError):
        return None


def _read(file: Path) -> Any:
    return read_json(file, file.read_bytes()) if file.is_file() else None
