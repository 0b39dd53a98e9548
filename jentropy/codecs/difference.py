"""Codes as what they differ by from those of another tensor, and back.

Two forms, of codes of n bits each:

    xor         the bits in which they differ
    difference  how many codes lie between them in the order of their values, mod 2^n, the sign in
                the lowest bit: 0, -1, 1, -2, ... are 0, 1, 2, 3, ...

Codes of a float with a sign are in order once the sign bit of a positive one is set, and all bits
of a negative one are inverted; all other codes are in order as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jentropy.formats import ElementFormat

from .coding import is_packed

XOR, DIFFERENCE = FORMS = "xor", "difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A form, and the format of the codes that are differed.

    Example:
      >>> from jentropy.formats import INT8
      >>> delta = Delta(form="difference", element=INT8)
      >>> codes, base = np.array([5, 3], np.uint8), np.array([6, 3], np.uint8)
      >>> differences = delta.of(codes, base)
      >>> differences.tolist(), delta.restored(differences, base).tolist()
      ([1, 0], [5, 3])
    """

    form: str
    element: ElementFormat

    def of(self, codes: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Differences of codes from those of a base, unsigned integers all."""
        if self.form == XOR:
            return codes ^ base
        apart = self._ordered(codes) - self._ordered(base)
        return (apart << _one(codes)) ^ _all_bits(apart >> _top(codes))

    def restored(self, differences: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Codes of differences: the inverse of `of`."""
        if self.form == XOR:
            return differences ^ base
        one = _one(base)
        apart = (differences >> one) ^ _all_bits(differences & one)
        return self._in_place(self._ordered(base) + apart)

    def _has_sign(self, codes: np.ndarray) -> bool:
        fields = self.element.field_bits("sign") and self.element.field_bits("exponent")
        return bool(fields) and not is_packed(self.element, codes.dtype)

    def _ordered(self, codes: np.ndarray) -> np.ndarray:
        if not self._has_sign(codes):
            return codes
        return codes ^ (_all_bits(codes >> _top(codes)) | _sign(codes))

    def _in_place(self, ordered: np.ndarray) -> np.ndarray:
        if not self._has_sign(ordered):
            return ordered
        return ordered ^ (_all_bits(_one(ordered) ^ (ordered >> _top(ordered))) | _sign(ordered))


def _one(codes: np.ndarray) -> np.generic:
    return codes.dtype.type(1)


def _top(codes: np.ndarray) -> np.generic:
    return codes.dtype.type(8 * codes.dtype.itemsize - 1)


def _sign(codes: np.ndarray) -> np.generic:
    return codes.dtype.type(1 << 8 * codes.dtype.itemsize - 1)


def _all_bits(ones: np.ndarray) -> np.ndarray:
    """All bits set where there is a one, none where there is a zero."""
    return np.zeros((), ones.dtype) - ones
