"""Dialect `auto-round`: Intel AutoRound, which packs as GPTQ or AWQ do.

`packing_format` (or `backend`) says which; `extra_config` has the bits, group size and symmetry of
modules, by name or pattern, that differ. Symmetric layers may have `qzeros` without an entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jentropy.checkpoints.contents import Contents, StoredArray
from jentropy.errors import InputError, UnsupportedError

from . import awq, gptq
from .weight import Weight

NAME = "auto-round"
METHODS = (NAME, "auto_round", "autoround", "intel/auto-round")
PATTERN = re.compile(r"[*+?^$()\[\]{}|\\]")  # in a key: it is no plain name


def claims(contents: Contents) -> bool:
    """Method `auto-round`."""
    return contents.quant_method in METHODS


def weight(contents: Contents, array: StoredArray) -> Weight | None:
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


def _declared(contents: Contents, module: str) -> Mapping[str, Any]:
    declared = contents.quantization or {}
    extra = declared.get("extra_config")
    extra = extra if isinstance(extra, Mapping) else {}
    own = extra.get(module)
    if own is None:
        patterns = ((k, v) for k, v in extra.items() if PATTERN.search(k))
        try:
            own = next((v for k, v in patterns if re.search(k, module)), None)
        except re.error as error:
            raise InputError(
                f"{contents.declared_in}: extra_config: {error}", file=contents.source
            ) from error
    return {**declared, **own} if isinstance(own, Mapping) else declared
