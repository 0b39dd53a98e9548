"""A checkpoint as its weights: names, formats, codes, values. Nothing is read unasked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.errors import InputError
from jentropy.formats import Format

from .contents import decode_text

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One weight of a checkpoint.

    Attributes:
      name: the weight's name.
      dialect: how the checkpoint packs it, a name in `DIALECTS`.
      shape: the logical shape, in the layout that the writer stores.
      dtype: dtype of its values; None if they have none of their own (a block format).
      number_format: its element, and the parameters that its blocks share.
      parts: names of the stored arrays that it is made of, by key.
      auxiliary: whether it serves the quantisation (scales of activations, indices) and is no
        weight of the model.
      note: why it is RAW, if it may be more; relative to its module.
      read: gives the arrays by key; `codes` calls it.
    """

    name: str
    dialect: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    number_format: Format
    parts: Mapping[str, str]
    auxiliary: bool = False
    note: str = ""
    read: Callable[[], Arrays] = field(repr=False)

    @property
    def format(self) -> str:
        """Name of its format in reports; RAW if its codes have no known values."""
        return self.number_format.name

    @property
    def codes(self) -> Arrays:
        """The raw arrays, unsigned integers: `code` of `shape`, and each parameter by name.

        A parameter's array has the weight's rank and an entry per block (`Parameter.grid`). With
        `group_index`, a column's parameters are those of that group.
        """
        return self.read()

    def values(self, codes: Arrays | None = None) -> np.ndarray:
        """The weight in its own dtype, every code kept.

        Args:
          codes: what `codes` gave, if that was read already.

        Raises:
          InputError: a block format, whose values have no dtype of their own.
        """
        if self.dtype is None:
            raise InputError(
                f"{self.format} has no dtype of its own", tensor=self.name, hint="dequantize it"
            )
        codes = self.codes if codes is None else codes
        return codes["code"].view(self.dtype).reshape(self.shape)

    def dequantize(self, dtype: Any = np.float32, codes: Arrays | None = None) -> np.ndarray:
        """The weight's values.

        Args:
          dtype: of the result; computed in float32 and rounded once, to nearest even.
          codes: what `codes` gave, if that was read already.

        Raises:
          InputError: a RAW tensor, whose codes have no known values, asked for in another dtype.
        """
        if self.format == formats.RAW and np.dtype(dtype) != self.dtype:
            raise InputError(
                "values of a RAW tensor",
                tensor=self.name,
                expected=self.dtype,
                found=dtype,
                hint=self.note or None,
            )
        codes = self.codes if codes is None else codes
        if self.dtype is None:
            return formats.dequantize(self.number_format, codes, dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # signalling NaNs; overflow to Inf
            return self.values(codes).astype(dtype)

    def as_raw(self, raw: Format, *, auxiliary: bool, note: str) -> Tensor:
        """The same codes, of values that are not known."""
        return dataclasses.replace(self, number_format=raw, auxiliary=auxiliary, note=note)


class Checkpoint:
    """Weights by name.

    Args:
      source: where it was opened, for messages and reports.
      tensors: its weights, in the order of the files.
      config: `config.json` (with `generation_config.json`'s keys that it lacks), if there is one.
      notes: what could not be recognised.
    """

    def __init__(
        self,
        source: Path,
        tensors: Iterable[Tensor],
        config: Mapping[str, Any] | None = None,
        notes: Iterable[str] = (),
    ):
        self.source = source
        self.config = config
        self.notes = tuple(notes)
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def names(self) -> list[str]:
        """Names of all weights."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """One weight, unread.

        Raises:
          InputError: no such weight.
        """
        if name not in self._tensors:
            raise InputError("no such tensor", file=self.source, tensor=name)
        return self._tensors[name]

    def read_all(self) -> Iterator[tuple[Tensor, Arrays]]:
        """Every weight and its codes, in order, one at a time."""
        for tensor in self._tensors.values():
            yield tensor, tensor.codes

    def read_text(self, file: str) -> str | None:
        """A text file that lies beside the weights, or None if there is none."""
        folder = self.source.parent if self.source.is_file() else self.source
        path = folder / file
        return decode_text(path, path.read_bytes()) if path.is_file() else None
