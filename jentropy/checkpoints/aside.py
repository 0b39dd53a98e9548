"""Scales that are not among a checkpoint's arrays: in its metadata, in files beside, left out."""

from __future__ import annotations

from .companions import is_scale_name, relative, stem
from .contents import Contents, StoredArray
from .dialects.scaled import is_fp8

_NOTHING = ("", "1", "1.0", "none", "null", "false")  # scales that are none, as text


class Aside:
    """Scales that are not among a checkpoint's arrays."""

    def __init__(self, contents: Contents):
        self._stems = {stem(name): name for name in contents.aside}
        self._told = [
            key
            for key, text in contents.metadata.items()
            if (is_scale_name(key) or ("quant" in key.lower() and "scale" in text.lower()))
            and text.lower() not in _NOTHING
        ]

    def scales(self, array: StoredArray) -> str:
        """Where an array's scales seem to be; "" if nowhere."""
        if name := self._stems.get(stem(array.name)):
            return f"its scales seem to be {relative(name, array)}, which is not the model's"
        if self._told and is_fp8(array):
            return f"__metadata__ has {self._told[0]!r}, which no dialect knows"
        return ""
