"""What Orbax wrote below a folder: stores of arrays, the trees that they make, and other files.

The folder may be the root of a `CheckpointManager`, a step of it, one item of a step, or what
`StandardCheckpointer` or `orbax.checkpoint.v1.save` wrote: whatever lies below it is read alike.
Arrays are compressed as tensors; every other file (metadata, JSON, protos) is kept as bytes, so
that what comes back is a checkpoint to Orbax wherever this one was.

The tree is nested dicts by folder, with the tree of an item where that lies. Levels of folders in
which all items agree are left out: one item alone is its tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from jentropy.errors import InputError

from . import array_store, choosing, item_tree, structure
from .array_store import DRIVERS, MANIFEST, ZarrArray
from .choosing import Choice
from .contents import CONFIGS, StoredArray
from .faults import read_file
from .indices import some
from .sources import walk
from .viewing import Source

MARKERS = ("_CHECKPOINT_METADATA", "_METADATA", "orbax.checkpoint", "_ROOT_METADATA", MANIFEST)
DEPTH = 3  # of an item below a manager's root, and of what an item may be made of
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax has not committed
STEP = re.compile(r"(.*_)?\d+")  # names of the folders of steps
OCDBT_PARTS = re.compile(r"manifest\.ocdbt|(d|ocdbt_data|ocdbt_meta|ocdbt\.process_[^/]*)/.*")
OWN = ""  # key of the tree of a folder that has items below it


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemStore:
    """A store of a source and where it lies.

    Attributes:
      path: of its folder, relative to the source, with slashes; empty if it is the source.
      ocdbt: whether it is an OCDBT store; otherwise arrays are folders of files.
      arrays: in the order of their numbers in the tree.
      others: values of an OCDBT store that are no array's, by key.
    """

    path: str
    ocdbt: bool
    arrays: tuple[ZarrArray, ...]
    others: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrbaxSource(Source):
    """A folder that Orbax wrote.

    Attributes:
      root: the folder.
      files: every file, relative to root, sorted.
      kept: those of them that are no store's.
      stores: the stores, sorted by path; the arrays of all are numbered in turn.
      tree: the structure of it all (`structure`), its leaves numbers of arrays.
      leaves: number and what `decompress` makes of each array of the tree.
      choice: all of its arrays, and what could not be recognised.
    """

    root: Path
    files: tuple[str, ...]
    kept: tuple[str, ...]
    stores: tuple[ItemStore, ...]
    tree: Any
    leaves: Mapping[int, item_tree.Leaf]
    choice: Choice
    whole = True

    @property
    def arrays(self) -> list[StoredArray]:
        """The arrays by number."""
        return [zarr.array for store in self.stores for zarr in store.arrays]

    def named(self) -> Iterator[tuple[str, StoredArray]]:
        """The arrays of the tree by the names of its leaves, in order."""
        arrays = self.arrays
        for name, number in structure.numbers(self.tree):
            yield name, arrays[number]

    def arrays_in(self, file: str) -> dict[str, StoredArray]:
        return {name: replace(array, name=name) for name, array in self.named()}

    def beside(self) -> dict[str, str]:
        """Nothing: every file is kept."""
        return {}

    def read_file(self, path: str) -> bytes | None:
        is_config = path in CONFIGS and path in self.kept
        return read_file(self.root / path) if is_config else None


def is_orbax(path: Path) -> bool:
    """Whether a folder, or one of those below it, is a checkpoint or an item that Orbax wrote."""
    return path.is_dir() and _is_orbax(path, DEPTH)


def _is_orbax(folder: Path, depth: int) -> bool:
    try:
        inside = {entry.name: entry for entry in folder.iterdir()}
    except OSError:  # who reads the files says so
        return False
    if any(name in inside for name in MARKERS):
        return True
    if any(choosing.is_weights(name) for name in inside):  # such a folder is no Orbax checkpoint
        return False
    folders = [entry for entry in inside.values() if entry.is_dir() and not entry.is_symlink()]
    if any((entry / file).is_file() for entry in folders for file in DRIVERS):
        return True
    return depth > 1 and any(
        _is_orbax(entry, depth - 1) for entry in folders if UNFINISHED not in entry.name
    )


def read_orbax(root: Path, step: int | None = None, *, follow_links: bool = True) -> OrbaxSource:
    """Reads what tells of the arrays below a folder; no array is read.

    Args:
      step: the only step of a manager's root that is wanted; None: all that is there.
      follow_links: see `sources.walk`.

    Raises:
      InputError: nothing that Orbax wrote; no such step; a tree or a store that cannot be read, by
        its folder.
    """
    if not is_orbax(root):
        raise InputError(
            "source" if step is None else f"step {step}",
            file=root,
            expected="an Orbax checkpoint" if step is None else "the root of a CheckpointManager",
            found="none",
        )
    files = tuple(_of_step(root, walk(root, follow_links=follow_links), step))
    stores: list[ItemStore] = []
    items: dict[str, Any] = {}
    leaves: dict[int, item_tree.Leaf] = {}
    owned, first = set[str](), 0
    for path, prefixes in _store_folders(root, files).items():
        folder = root / path
        told, ocdbt = item_tree.read_metadata(folder), array_store.is_ocdbt(folder)
        arrays, others = array_store.read_store(
            folder, prefixes, complete=bool(told and told[item_tree.EVERY_CHUNK])
        )
        items[path], described = item_tree.of_store(folder, told, arrays, first)
        leaves |= described
        first += len(arrays)
        stores.append(ItemStore(path=path, ocdbt=ocdbt, arrays=tuple(arrays), others=others))
        owned |= owned_files(files, path, [array.prefix for array in arrays], ocdbt=ocdbt)
    kept = tuple(name for name in files if name not in owned)
    for path in sorted({_parent(name) for name in kept} - items.keys()):
        node = None if _is_unfinished(path) else item_tree.of_files(root, path, kept)
        if node is not None:
            items[path] = node
    tree = _by_folder(root, items)
    return OrbaxSource(
        root=root,
        files=files,
        kept=kept,
        stores=tuple(stores),
        tree=tree,
        leaves=leaves,
        choice=choosing.of_tree([n for n, _ in structure.numbers(tree)], notes(kept, tree)),
    )


def notes(kept: Sequence[str], tree: Any) -> Iterator[str]:
    """What of a checkpoint is not shown, by its other files and its tree."""
    for name in sorted({name.split("/")[0] for name in kept if _is_unfinished(name)}):
        yield f"{name}: not committed by Orbax, kept as bytes"
    if beside := [name for name in kept if choosing.is_weights(name) and not _is_unfinished(name)]:
        yield f"{some(beside)}: beside the arrays, kept and not shown (open it by its path)"
    first: dict[int, str] = {}
    for name, number in structure.numbers(tree):
        if first.setdefault(number, name) != name:
            yield f"{first[number]}, {name}: Orbax stored one array for both, the other is lost"


def _of_step(root: Path, files: list[str], step: int | None) -> Iterator[str]:
    """The files of a step and those that are no other's, or all."""
    if step is None:
        yield from files
        return
    tops = sorted({name.split("/")[0] for name in files if "/" in name})
    steps = [name for name in tops if STEP.fullmatch(name.split(UNFINISHED)[0])]
    wanted = [name for name in steps if re.fullmatch(rf"(.*_)?0*{step}", name)]
    if len(wanted) != 1:
        told = ", ".join(name for name in steps if not _is_unfinished(name))
        raise InputError(
            f"step {step}",
            file=root,
            expected=f"one of {told}" if told else "the root of a CheckpointManager",
            found=" and ".join(wanted) or "none",
        )
    others = {*steps} - {*wanted}
    yield from (name for name in files if "/" not in name or name.split("/")[0] not in others)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _is_unfinished(name: str) -> bool:
    return UNFINISHED in name


def _store_folders(root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Folders of stores, and the prefixes of the arrays in those that are no OCDBT stores."""
    done = [name for name in files if not _is_unfinished(name)]
    trees = {_parent(name) for name in done if PurePosixPath(name).name == "_METADATA"}
    manifests = {_parent(name) for name in done if PurePosixPath(name).name == MANIFEST}
    stores: dict[str, list[str]] = {
        folder: []
        for folder in manifests
        if not re.match(r"ocdbt\.process_", PurePosixPath(folder).name)
        or _parent(folder) not in manifests
    }
    for name in done:
        array, _, file = name.rpartition("/")
        if file not in DRIVERS or not array:
            continue
        above = [str(p) if str(p) != "." else "" for p in PurePosixPath(array).parents]
        folder = next((p for p in above if p in trees), above[0])
        if folder not in manifests:
            stores.setdefault(folder, []).append(f"{array.removeprefix(folder).lstrip('/')}/")
    for folder in trees:  # of no array, but perhaps of numbers and texts
        stores.setdefault(folder, [])
    return dict(sorted(stores.items()))


def owned_files(
    files: Iterable[str], path: str, prefixes: Sequence[str], *, ocdbt: bool
) -> set[str]:
    """The files that a store is made of."""
    above = f"{path}/" if path else ""
    inside = [name for name in files if name.startswith(above)]
    if ocdbt:
        return {name for name in inside if OCDBT_PARTS.fullmatch(name.removeprefix(above))}
    starts = tuple(f"{above}{prefix}" for prefix in prefixes)
    return {name for name in inside if starts and name.startswith(starts)}


def _by_folder(root: Path, items: Mapping[str, Any]) -> Any:
    """The tree of items by folder, without the levels in which all agree."""
    paths = {name: tuple(name.split("/")) if name else () for name in sorted(items)}
    depth = max(map(len, paths.values()), default=0)
    told = [n for n in range(depth) if len({path[n : n + 1] for path in paths.values()}) > 1]
    places = {name: tuple(path[n] for n in told if n < len(path)) for name, path in paths.items()}
    above = {place[:n] for place in places.values() for n in range(len(place))}
    nodes = {(*p, OWN) if p in above else p: items[name] for name, p in places.items()}
    return item_tree.nested(nodes, root)
