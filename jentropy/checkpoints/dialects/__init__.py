"""Dialects: how one tool names and packs a format in a checkpoint.

A dialect is a module with `claims(config, stored) -> bool` and `tensors(config, stored) ->
iterable of Tensor`, where `stored` maps names to `StoredTensor`. To add one, write it and give it a
line in `DIALECTS`; the first that claims a checkpoint reads it, and `plain` claims all.
"""

from __future__ import annotations

from types import ModuleType

from . import plain

DIALECTS: dict[str, ModuleType] = {module.NAME: module for module in (plain,)}

__all__ = ["DIALECTS"]
