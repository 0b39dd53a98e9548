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
from jentropy.schema import (
    FLAG,
    OBJECT,
    SIZE,
    TEXT,
    Key,
    Kind,
    many,
    misfit,
    optional,
    parse,
    record,
    table,
)

from . import structure
from .array_store import ZarrArray
from .faults import read_file
from .structure import MAX_DEPTH, Json, Stored

METADATA, STRINGS, ARRAYS = "_METADATA", "_strings.json", "array_metadatas"
EVERY_CHUNK = "store_array_data_equal_to_fill_value"
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


def _step(*, key: str, key_type: int) -> str | int:
    if key_type != SEQUENCE:
        return key
    try:
        return int(key)
    except ValueError:
        raise misfit("a number as the key of a sequence", key) from None


# Path and type of every leaf of an item, and whether chunks that equal the fill value are written.
TREE = record(
    dict,
    {
        "tree_metadata": table(
            record(
                lambda key_metadata, value_metadata: (key_metadata, value_metadata["value_type"]),
                {
                    "key_metadata": many(record(_step, {"key": TEXT, "key_type": SIZE})),
                    "value_metadata": record(dict, {"value_type": TEXT}),
                },
            )
        ),
        EVERY_CHUNK: Key(FLAG, default=False),
    },
)
IMPLEMENTATION = record(dict, {"random_key_impl": Key(optional(TEXT), default=None)})
ARRAY_METADATA = record(
    dict,
    {
        "param_name": Key(TEXT, default=""),
        "ext_metadata": Key(optional(IMPLEMENTATION), default=None),
    },
)
KEYS = record(dict, {"array_metadatas": many(record(dict, {"array_metadata": ARRAY_METADATA}))})


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """What Orbax says of an item, as TREE has it; None if it does not."""
    return _read(folder / METADATA, TREE)


def of_store(
    folder: Path, told: Mapping[str, Any] | None, arrays: Sequence[ZarrArray], first: int
) -> tuple[Any, dict[int, Leaf]]:
    """The structure of an item.

    Args:
      told: its metadata.
      arrays: of its store.
      first: number of the first of them.

    Returns:
      The tree, and the arrays' leaves by number.

    Raises:
      InputError: a tree of which an array or a text is not there.
      CorruptError: metadata that are not as Orbax writes them.
    """
    numbers = {zarr.array.name: first + n for n, zarr in enumerate(arrays)}
    if told is None:
        return {name: Stored(n) for name, n in numbers.items()}, {}
    texts, implementations = _read(folder / STRINGS, OBJECT) or {}, _random_keys(folder)
    nodes: dict[structure.Path, Any] = {}
    leaves: dict[int, Leaf] = {}
    for path, kind in told["tree_metadata"].values():
        name = ".".join(map(str, path))
        if kind in EMPTY:
            nodes[path] = EMPTY[kind]
        elif kind == "string" and isinstance(texts.get(name), str):
            nodes[path] = texts[name]
        elif name in numbers:
            nodes[path] = Stored(numbers[name])
            leaves[numbers[name]] = Leaf(
                jax=kind == "jax.Array", scalar=kind == "scalar", key=implementations.get(name, "")
            )
        else:
            raise InputError(
                f"{kind} of the tree",
                file=folder,
                tensor=name,
                expected="it in this folder",
                found="none; the checkpoint is not complete",
            )
    if len(nodes) < len(told["tree_metadata"]) or max(map(len, nodes), default=0) > MAX_DEPTH:
        raise _bad_tree(folder)
    return nested(nodes, folder), leaves


def _bad_tree(folder: Path) -> CorruptError:
    return CorruptError(
        "the tree's metadata",
        file=folder / METADATA,
        expected="every path once, no leaf with others below it",
        found="others",
    )


def nested(nodes: Mapping[structure.Path, Any], folder: Path) -> Any:
    """The tree of its leaves by path; integers are the places of a sequence."""
    if () in nodes and len(nodes) == 1:
        return nodes[()]
    below: dict[str | int, dict[structure.Path, Any]] = {}
    for path, leaf in nodes.items():
        if not path:
            raise _bad_tree(folder)
        below.setdefault(path[0], {})[path[1:]] = leaf
    children = {key: nested(inside, folder) for key, inside in below.items()}
    if children and all(n in children for n in range(len(children))):
        return [children[n] for n in range(len(children))]
    return children


def _random_keys(folder: Path) -> dict[str, str]:
    """Implementations of the arrays that are keys of a random generator, by name."""
    files = [_read(file, KEYS) for file in sorted((folder / ARRAYS).glob("*")) if file.is_file()]
    told = [entry["array_metadata"] for content in files for entry in content["array_metadatas"]]
    return {
        one["param_name"]: one["ext_metadata"]["random_key_impl"]
        for one in told
        if one["ext_metadata"] and one["ext_metadata"]["random_key_impl"]
    }


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
        return Json(json.loads(read_file(file)))
    except (ValueError, RecursionError):
        return None


def _read(file: Path, kind: Kind) -> Any:
    return parse(kind, read_file(file), file) if file.is_file() else None
