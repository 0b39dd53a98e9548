"""Arrays that serve the quantisation of another one, where no dialect tells: by name and shape.

A scale is named after the array whose codes it scales: `X.weight_scale`, `X.scale_weight`,
`X.qscale_weight`, `scales.X.kernel` and `X.weight.absmax` all go with `X.weight`. Two names belong
together if they are the same without the words for scales and for codes. Beyond that, any small
array of numbers under the name of another, or alone with it in its module, may be its scale.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

import ml_dtypes
import numpy as np

from .contents import StoredArray

# Words for scales and zero points; not upscale, scaler, scalar.
_SCALE = re.compile(
    "(q|de|d|dq|w|weight|inv|block)?scal(e|es|ed|ing)(inv)?|scl|absmax|amax|scb|q?zeros|zeropoints?"
    "|zp"
)
# Words that tell parts of a quantised weight from each other, not one weight from another.
# fmt: off
_PARTS = frozenset((
    "weight", "weights", "w", "kernel", "qweight", "qvalue", "qdata", "data", "code", "codes",
    "packed", "blocks", "inv", "inverse", "quant", "quantizer", "quantized", "dequant", "factor",
    "factors", "point", "tensor", "channel", "block", "row", "group", "global", "per", "fp8",
    "param", "params",
))
# Small arrays that a module may have whether it is quantised or not.
_PLAIN = frozenset((
    "bias", "biases", "b", "beta", "gamma", "alpha", "mean", "var", "running", "num", "norm", "ln",
    "eps", "mask", "embed", "embedding", "position", "cache", "lora", "ids", "index", "indices",
    "table",
))
# fmt: on
_NUMBERS = tuple(
    np.dtype(dtype)
    for dtype in (
        np.float64,
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e8m0fnu,
        ml_dtypes.float8_e4m3fn,
        np.uint8,
    )
)
_ORDER = "g_idx"  # the group of each input
_GROUP = 8  # weights of the smallest group that shares a scale
_SEPARATORS = re.compile("[./]")

Stem = tuple[str, ...]


@lru_cache(maxsize=1 << 12)  # names repeat few components many times
def _words(component: str) -> tuple[str, ...]:
    """Words of a dotted name's component, in lower case; `weightScale` has two."""
    spaced = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", component).lower()
    spaced = "zeros" if spaced == "zero" else spaced.replace("zero_point", "zeropoint")
    spaced = re.sub("_s$", "_scale", spaced)  # wq_s
    return tuple(word for word in re.split("[^a-z0-9]+", spaced) if word)


@lru_cache(maxsize=1 << 12)
def _speaks_of_scales(component: str) -> bool:
    return any(map(_SCALE.fullmatch, _words(component)))


@lru_cache(maxsize=1 << 12)
def _subject(component: str) -> Stem:
    """Words of a component that are about neither scales nor codes."""
    kept, after_scale = [], False
    for word in _words(component):
        if _SCALE.fullmatch(word):
            after_scale = True
        elif word not in _PARTS and not (after_scale and word.isdigit()):  # weight_scale_2
            kept.append(word)
    return tuple(kept)


def is_scale_name(name: str) -> bool:
    """Whether a name speaks of a scale or a zero point."""
    return any(map(_speaks_of_scales, _SEPARATORS.split(name)))


def stem(name: str) -> Stem:
    """The words of a name that are about neither scales nor codes."""
    return tuple(itertools.chain.from_iterable(map(_subject, _SEPARATORS.split(name))))


def relative(text: str, array: StoredArray) -> str:
    """A text with names relative to the array's module, so that the notes of many are one."""
    parent = _parent(array.name)
    return text.replace(f"{parent}.", "") if parent else text


def serves(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array of a shape could hold a number for every block of codes of another."""
    count, codes = math.prod(small), math.prod(shape)
    if count <= 1 or codes <= count:
        return count == 1
    if len(small) == len(shape) and any(_cuts(grid, shape) for grid in (small, small[::-1])):
        return True
    flat, sizes = (tuple(n for n in axes if n > 1) for axes in (small, shape))
    if len(flat) == 1:
        return count in shape or (codes % count == 0 and codes // count >= _GROUP)
    if len(flat) == len(sizes) and any(_cuts(grid, sizes) for grid in (flat, flat[::-1])):
        return True
    return small == shape[: len(small)]


def _cuts(grid: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(_is_grid(n, of) for n, of in zip(grid, shape, strict=True))


def _is_grid(blocks: int, size: int) -> bool:
    """Whether an axis can be cut into that many blocks of one size, the last one shorter."""
    if not 0 < blocks <= size:
        return False
    return -(-size // -(-size // blocks)) == blocks


class Companions:
    """The companions of arrays among others.

    Args:
      arrays: those that may be companions: what no dialect has taken.
    """

    def __init__(self, arrays: Iterable[StoredArray]):
        self._arrays = {array.name: array for array in arrays}
        self._sorted = sorted(self._arrays)
        self._alike: dict[Stem, list[str]] = defaultdict(list)
        self._inside: dict[str, list[str]] = defaultdict(list)  # names by module
        for name in self._arrays:
            self._alike[stem(name)].append(name)
            self._inside[_parent(name)].append(name)

    def scales(self, array: StoredArray) -> list[str]:
        """Names of scales and zero points that are named after an array, and no larger."""
        most = math.prod(array.shape)
        return [
            name
            for name in self._alike.get(stem(array.name), ())
            if name != array.name
            and is_scale_name(name)
            and math.prod(self._arrays[name].shape) <= most
        ]

    def named_after(self, array: StoredArray) -> list[str]:
        """Names of all that is named after an array and can hardly be anything of its own."""
        inside = self._inside.get(array.name, ())
        longer = (n for n in self._starting(f"{array.name}_") if self._may_serve(n, array))
        orders = (f"{array.name}_{_ORDER}", f"{_parent(array.name)}.{_ORDER}")
        order = (name for name in orders if name in self._arrays)
        return list(dict.fromkeys((*self.scales(array), *inside, *longer, *order)))

    def suspects(self, array: StoredArray) -> list[str]:
        """All of `named_after`, what has its name elsewhere or lies in its module beside it."""
        names = self.named_after(array)
        names += [n for n in self._alike.get(stem(array.name), ()) if self._may_serve(n, array)]
        module, words = _parent(array.name), _words(_last(array.name))
        if module and _PARTS.issuperset(words):
            names += [n for n in self._inside.get(module, ()) if self._may_serve(n, array)]
        return list(dict.fromkeys(names))

    def _starting(self, prefix: str) -> Iterator[str]:
        for i in range(bisect.bisect_left(self._sorted, prefix), len(self._sorted)):
            if not self._sorted[i].startswith(prefix):
                return
            yield self._sorted[i]

    def _may_serve(self, name: str, array: StoredArray) -> bool:
        other = self._arrays[name]
        return (
            name != array.name
            and other.dtype in _NUMBERS
            and serves(other.shape, array.shape)
            and _PLAIN.isdisjoint(_words(_last(name)))
        )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
