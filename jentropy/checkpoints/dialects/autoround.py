"""Dialect `auto-round`: Intel AutoRound, which packs as GPTQ or AWQ do.

`packing_format` (or `backend`) says which; `extra_config` has the bits, group size and symmetry of
modules, by name or pattern, that differ. Symmetric layers may have `qzeros` without an entry.
"""

from __future__ import annotations

import re

from jentropy.errors import UnsupportedError

from . import awq, gptq
from .settings import Declared, compiled, mapping
from .weight import Contents, StoredArray, Tensor

PATTERN = re.compile(r"[*+?^$()\[\]{}|\\]")  # in a key: it is no plain name


def weight(contents: Contents, array: StoredArray) -> Tensor | None:
    """A `qweight`."""
    if not array.name.endswith(gptq.QWEIGHT):
        return None
    declared = _declared(contents, array.name.removesuffix(gptq.QWEIGHT))
    packing = str(declared.get("packing_format") or declared.get("backend"))
    if declared.get("data_type", "int") == "int" and "gptq" in packing:
        return gptq.packed_weight(contents, array, declared, "gptq")
    if declared.get("data_type", "int") == "int" and "awq" in packing:
        return awq.packed_weight(contents, array, declared)
    raise UnsupportedError(
        f"packing_format of {contents.declared_in}",
        file=contents.source,
        tensor=array.name,
        expected="integers packed as auto_gptq or auto_awq",
        found=f"{declared.get('data_type')!r:.20} as {packing!r:.40}",
    )


def _declared(contents: Contents, module: str) -> Declared:
    declared = mapping(contents.quantization)
    extra = mapping(declared.get("extra_config"))
    patterns = (key for key in extra if PATTERN.search(key))
    fits = (k for k in patterns if compiled(k, "extra_config", contents).search(module))
    name = module if extra.get(module) is not None else next(fits, "")
    return {**declared, **mapping(extra.get(name))}
