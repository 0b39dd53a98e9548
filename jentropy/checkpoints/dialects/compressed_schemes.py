"""The schemes of compressed-tensors: what each of `config_groups` says of its weights.

A module's scheme is the one that has its name as a target; else one with a pattern that matches it
(`re:`); else the first of the class Linear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jentropy import formats
from jentropy.errors import InputError, UnsupportedError

from .settings import compiled, integer, mapping
from .weight import Contents, Shape

LINEAR = "Linear"


@dataclass(frozen=True, slots=True)
class Scheme:
    """The weights' part of a config group."""

    targets: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    format: str
    weights: Mapping[str, Any]

    def fits(self, module: str) -> int:
        """How well the targets name a module: 3 by its name, 2 by a pattern, 1 as a linear layer.

        Classes of modules are not in a checkpoint; that of a packed weight is Linear, as a rule.
        """
        if module in self.targets:
            return 3
        if any(pattern.match(module) for pattern in self.patterns):
            return 2
        return 1 if LINEAR in self.targets else 0


def scheme_of(contents: Contents, name: str, module: str) -> Scheme:
    """The scheme of a module.

    Raises:
      UnsupportedError: there are several, and none has it as a target.
    """
    schemes = _schemes(contents)
    scheme = max(schemes, key=lambda s: s.fits(module))  # the first of equals
    if not scheme.fits(module) and len(schemes) > 1:
        raise UnsupportedError(
            f"config_groups of {contents.declared_in}",
            file=contents.source,
            tensor=name,
            expected=f"a target that names it, or {LINEAR}",
            found="none",
        )
    return scheme


@lru_cache(maxsize=8)  # read once for all tensors of a checkpoint
def _schemes(contents: Contents) -> tuple[Scheme, ...]:
    declared = mapping(contents.quantization)
    groups, schemes = declared.get("config_groups"), []
    for group in map(mapping, mapping(groups).values()):
        if not isinstance(group.get("weights"), Mapping):
            continue
        targets = group.get("targets")
        targets = [t for t in targets if isinstance(t, str)] if isinstance(targets, list) else []
        patterns = [compiled(t[3:], "targets", contents) for t in targets if t.startswith("re:")]
        name = str(group.get("format") or declared.get("format"))
        schemes.append(Scheme(frozenset(targets), tuple(patterns), name, group["weights"]))
    if not schemes:
        raise InputError(
            f"{contents.declared_in}: config_groups",
            file=contents.source,
            expected="a group with weights",
            found=f"{groups!r:.60}",
        )
    return tuple(schemes)


def block_of(contents: Contents, scheme: Scheme, why: str) -> Shape | None:
    """Weights that a scale serves, by the scheme's strategy."""
    strategy = scheme.weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if scheme.weights.get("group_size") is None else "group"
        strategy = "channel" if scheme.weights.get("group_size") == -1 else strategy
    match strategy:
        case "group" | "tensor_group":
            return (integer(scheme.weights, "group_size", contents),)
        case "channel":
            return formats.blocks.ROW[1:]
        case "tensor":
            return None
        case other:
            raise UnsupportedError(
                f"strategy of {why}",
                file=contents.source,
                expected="group, tensor_group, channel or tensor",
                found=f"{other!r:.40}",
            )
