"""Indices of safetensors files in parts: which one decides, and what it points to.

An index (`X.safetensors.index.json`) is JSON whose `weight_map` has the file of every tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jentropy.errors import InputError, MissingFileError
from jentropy.schema import TEXT, checked, parse, record, table

from . import safetensors

# With a variant before or after `index`.
PATTERN = re.compile(
    r"(?P<stem>.+)\.safetensors(?P<old>\.[^.]+)?\.index(?P<variant>\.[^.]+)?\.json"
)
INDEX = record(dict, {"weight_map": checked(table(TEXT), "names of tensors and their files", bool)})
_USUAL = ("model", "diffusion_pytorch_model")  # what transformers and diffusers name a model's
_VARIES = (".", "-", "_")  # between a name and that of its variant
_SHOWN = 3  # names in a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointed:
    """What an index points to.

    Attributes:
      files: the arrays of every file that are the model's; empty if the index is no guide to what
        is here.
      notes: where index and files differ.
      fault: a file that is not here, and nothing in its place.
    """

    files: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    fault: MissingFileError | None = None


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def varies(stem: str, base: str) -> bool:
    """Whether a file's name is that of a variant of another."""
    return stem.startswith(base) and stem[len(base) :].startswith(_VARIES)


def find(files: Sequence[str], folder: Path) -> str | None:
    """The index among a folder's files that decides; None if there is none.

    Raises:
      InputError: several, none of which is a variant's.
    """
    matches = {name: match for name in files if (match := PATTERN.fullmatch(name))}
    plain = sorted((n for n, m in matches.items() if not (m["variant"] or m["old"])), key=len)
    for stem in _USUAL:
        if (usual := f"{stem}{safetensors.SUFFIX}.index.json") in plain:
            return usual
    if plain:
        if all(varies(matches[name]["stem"], matches[plain[0]]["stem"]) for name in plain[1:]):
            return plain[0]
        raise InputError(
            "several indices", file=folder, expected="one", found=", ".join(sorted(plain))
        )
    if len(matches) != 1:
        return None
    ((name, match),) = matches.items()
    return None if f"{match['stem']}{safetensors.SUFFIX}" in files else name


def missing(shard: str, file: Path, tensor: str | None = None) -> MissingFileError:
    """What is said of a shard that is not here."""
    return MissingFileError(
        f"missing shard {shard}",
        file=file,
        tensor=tensor,
        hint="fetch it, or take the files that are here one by one",
    )


def follow(
    path: Path,
    weight_map: Mapping[str, str],
    siblings: Sequence[str],
    *,
    is_here: Callable[[str], bool],
    names: Callable[[str], Sequence[str]],
) -> Pointed:
    """Follows an index.

    Args:
      path: the index.
      weight_map: file of every tensor, relative to the folder.
      siblings: names of the files in that folder.
      is_here: whether there is such a file.
      names: gives the names of the arrays in such a file.

    Raises:
      InputError: whatever `names` raises.
    """
    lost = {tensor: shard for tensor, shard in weight_map.items() if not is_here(shard)}
    fault = None
    if lost:
        tensor, shard = next(iter(lost.items()))
        match = PATTERN.fullmatch(path.name)
        if match is not None and f"{match['stem']}{safetensors.SUFFIX}" in siblings:
            note = f"{path.name}: ignored, it names {shard}, which is gone"
            return Pointed(files={}, notes=(note,))
        fault = missing(shard, path, tensor)
    inside = {
        shard: dict.fromkeys(names(shard))
        for shard in sorted(set(weight_map.values()) - set(lost.values()))
    }
    owner = {t: shard for shard, here in inside.items() for t in here if t in weight_map}
    owner |= {t: shard for t, shard in weight_map.items() if t in inside.get(shard, ())}
    if not owner:
        note = f"{path.name}: ignored, it names no tensor that is here"
        return Pointed(files={}, notes=(note,), fault=fault)
    files = {s: tuple(t for t in here if owner.get(t) == s) for s, here in inside.items()}
    stale = [t for t in weight_map if t not in owner and t not in lost]
    return Pointed(
        files=files, notes=tuple(_notes(path.name, weight_map, stale, inside, owner)), fault=fault
    )


def _notes(
    name: str,
    weight_map: Mapping[str, str],
    stale: Sequence[str],
    inside: Mapping[str, Iterable[str]],
    owner: Mapping[str, str],
) -> Iterable[str]:
    """Where an index and its files differ."""
    if stale:
        yield f"{name}: names {some(stale)}, which no file has: left out"
    if moved := [t for t, shard in owner.items() if weight_map[t] != shard]:
        yield f"{name}: {some(moved)} lie in other files than it says"
    for shard, here in inside.items():
        if others := [t for t in here if owner.get(t) != shard]:
            told = f"holds {some(others)}, which {name} does not point to"
            yield f"{shard}: {told}: kept and not shown"


def read_weight_map(path: Path, text: bytes) -> dict[str, str]:
    """File of every tensor, as an index has it.

    Raises:
      CorruptError: no such index.
    """
    return parse(INDEX, text, path, "index")["weight_map"]
