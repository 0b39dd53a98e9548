"""Steps of a training, compressed: handlers for Orbax's managers of checkpoints.

Orbax decides when to save and what to keep, makes and commits the folders of steps; the state in
one is a compressed checkpoint, `STEP/ITEM/compressed`, which all commands take. With the
`CheckpointManager`:

    manager = ocp.CheckpointManager(root, options=ocp.CheckpointManagerOptions(max_to_keep=3))
    manager.save(step, args=training.Save(state))
    state = manager.restore(step, args=training.Restore(abstract_state))

and with `training.Checkpointer` of Orbax's v1:

    with training.context():
        checkpointer = ocp.training.Checkpointer(root)
        checkpointer.save_async(step, state)
        state = checkpointer.load(step, abstract_state)

A state is copied to the host before `save` returns; it is compressed and written in the background.
Of several processes each keeps what it will write: arrays that lie over them are gathered in turn.
What it holds comes back bit for bit: parameters, optax' moments and counts, nnx and Linen states,
typed random keys, Python's numbers. With an abstract state (`jax.ShapeDtypeStruct` with shardings)
every array goes where that says, on whatever devices there are then.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import AsyncCheckpointHandler
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.args import CheckpointArgs
from orbax.checkpoint.checkpoint_args import register_with_handler
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals

from jentropy.checkpoints import load
from jentropy.checkpoints.entries import Entry
from jentropy.checkpoints.saving import Taken, taken
from jentropy.checkpoints.store import Store, is_compressed_checkpoint
from jentropy.containers import decompress
from jentropy.containers.placing import struct
from jentropy.containers.tensor import is_compressed
from jentropy.errors import InputError

FOLDER = "compressed"  # of an item, in which its checkpoint lies
STATE = "state"  # what Orbax's v1 calls a pytree that is saved alone
# What tells Orbax's v1 that an item is a pytree; its own handler finds no tree there, and says so.
TREE_FILE = "_METADATA"
NOT_ORBAX = {"jentropy": f"compressed, see {FOLDER}/ and jentropy.training.context"}
MOST_PARTS = 40  # that a state is told of in


async def _written(state: Taken, folder: Path) -> None:
    """Writes in a thread of its own: Orbax, which writes the index, runs loops of events itself."""
    await asyncio.to_thread(state.write, folder / FOLDER)


def _restored(folder: Any, target: Any = None) -> Any:
    path = Path(folder) / FOLDER
    if not path.is_dir():
        raise InputError(
            "no compressed state", file=path, expected="what `training` saved", found="nothing"
        )
    return decompress(load(path, target=target))


def _abstract(folder: Any) -> Any:
    """The state of a folder as `jax.ShapeDtypeStruct`s."""

    def of(leaf: Any) -> Any:
        if not is_compressed(leaf):
            return leaf
        told = struct(leaf)
        return jax.ShapeDtypeStruct(told.shape, told.dtype)

    return jax.tree.map(of, load(Path(folder) / FOLDER), is_leaf=is_compressed)


class CompressedHandler(AsyncCheckpointHandler):
    """What a `CheckpointManager` saves and restores compressed states by; see `Save`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     CompressedHandler().save(Path(folder), args=Save({"w": jnp.arange(3)}))
      ...     CompressedHandler().restore(Path(folder))["w"].tolist()
      [0, 1, 2]
    """

    async def async_save(self, directory: Any, args: Save) -> list[Any]:
        """Takes a state, and gives what waits for it to be written."""
        state = taken(args.item, copied=True)
        writing = _written(state, Path(directory))
        return [CommitFutureAwaitingContractedSignals(writing, name="jentropy")]

    def save(self, directory: Any, args: Save) -> None:
        """Writes a state."""
        taken(args.item, copied=True).write(Path(directory) / FOLDER)

    def restore(self, directory: Any, args: Restore | None = None) -> Any:
        """The state of a step."""
        return _restored(directory, None if args is None else args.item)

    def metadata(self, directory: Any) -> Any:
        """The state of a step without its numbers."""
        return _abstract(directory)


@register_with_handler(CompressedHandler, for_save=True)
@dataclass
class Save(CheckpointArgs):
    """Of `CheckpointManager.save`: saves a state compressed.

    Attributes:
      item: a pytree, as `jentropy.save` takes it.

    Example:
      >>> Save({"step": 3}).item
      {'step': 3}
    """

    item: Any


@register_with_handler(CompressedHandler, for_restore=True)
@dataclass
class Restore(CheckpointArgs):
    """Of `CheckpointManager.restore`: gives back what `Save` saved.

    Attributes:
      item: the state as it is wanted, as `target` of `jentropy.load`; None: dicts of its fields,
        arrays where they are decoded.

    Example:
      >>> Restore().item is None
      True
    """

    item: Any = None


class CompressedState(ocp.handlers.CheckpointableHandler[Any, Any]):
    """The handler of Orbax's v1, see `context`.

    Example:
      >>> CompressedState().is_handleable({"w": 3})
      True
    """

    async def save(self, directory: Any, checkpointable: Any) -> Awaitable[None]:
        """Takes a state, and gives what writes it."""
        state = taken(checkpointable, copied=True)

        async def write() -> None:
            folder = Path(await directory.await_creation())
            await _written(state, folder)
            (folder / TREE_FILE).write_text(json.dumps(NOT_ORBAX), encoding="utf-8")

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Gives what reads a state."""
        return asyncio.to_thread(_restored, directory, abstract_checkpointable)

    async def metadata(self, directory: Any) -> Any:
        """The state without its numbers."""
        return _abstract(directory)

    def is_handleable(self, checkpointable: Any) -> bool:
        """Any pytree."""
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Any pytree of abstract arrays."""
        return True


def context(names: Iterable[str] = (STATE,), **options: Any) -> Any:
    """A context of Orbax's v1 in which states are saved and loaded compressed.

    Args:
      names: of the checkpointables that are; a pytree that is saved alone is "state".
      options: of `ocp.Context`.

    Returns:
      An `orbax.checkpoint.v1.Context`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder, context():
      ...     ocp.save(f"{folder}/t", {"w": jnp.arange(3)})
      ...     ocp.load(f"{folder}/t")["w"].tolist()
      [0, 1, 2]
    """
    ours = frozenset(names)
    registry = ocp.handlers.local_registry(include_global_registry=False)
    everywhere = ocp.handlers.global_registry()
    for handler, name in everywhere.get_all_entries():
        if name not in ours:
            others = everywhere.get_secondary_typestrs(handler)
            registry.add(handler, checkpointable_name=name, secondary_typestrs=others)
    for name in ours:
        registry.add(CompressedState, checkpointable_name=name)
    made = ocp.Context(**options)
    made.checkpointables.registry = registry
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a part of a state gained.

    Attributes:
      name: path of the part.
      raw_bytes, archived_bytes: of its arrays, before and after.
      numbers: of them.

    Example:
      >>> Part(name="params", raw_bytes=16, archived_bytes=12, numbers=8).bits
      12.0
    """

    name: str
    raw_bytes: int
    archived_bytes: int
    numbers: int

    @property
    def bits(self) -> float:
        """Archived bits of a number."""
        return 8 * self.archived_bytes / max(1, self.numbers)

    @property
    def saved(self) -> float:
        """Share of its bytes that it does without."""
        return 1 - self.archived_bytes / max(1, self.raw_bytes)


def gained(path: str | Path) -> list[Part]:
    """What each part of a saved state gained: parameters, first and second moments, and so on.

    Args:
      path: of a compressed checkpoint, or of the step or the item that holds it.

    Returns:
      A part for each branch at the root; of a chain, as optax makes them, for each field of links.

    Raises:
      InputError: no compressed checkpoint.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     state = {"params": {"w": np.zeros(900)}, "opt": [{"mu": {"w": np.zeros(900)}}]}
      ...     jentropy.save(f"{folder}/t", state)
      ...     [(part.name, part.raw_bytes) for part in gained(f"{folder}/t")]
      [('opt.0.mu', 7200), ('params', 7200)]
    """
    root = Path(path)
    places = (root, root / FOLDER, *sorted(root.glob(f"*/{FOLDER}")))
    found = next((place for place in places if is_compressed_checkpoint(place)), root)
    entries = Store(found).index.tensors
    names = {entry.name: _part(entry.name) for entry in entries}
    if len(set(names.values())) > MOST_PARTS:
        names = {name: name.split(".")[0] for name in names}
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(names[entry.name], []).append(entry)
    return [
        Part(
            name=name,
            raw_bytes=sum(e.header.raw_bytes for e in some),
            archived_bytes=sum(e.header.payload_bytes + len(e.header.coding.head) for e in some),
            numbers=sum(e.header.size for e in some),
        )
        for name, some in parts.items()
    ]


def _part(name: str) -> str:
    """The first key of a path, and all that follows through a chain of numbered links."""
    keys = name.split(".")
    end = 1
    while end < len(keys) - 1 and (keys[end].isdigit() or keys[end - 1].isdigit()):
        end += 1
    return ".".join(keys[:end])
