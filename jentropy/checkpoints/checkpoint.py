"""A checkpoint as its weights: names, formats, codes, values. Nothing is read unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jentropy import formats
from jentropy.errors import CorruptError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One weight of a checkpoint.

    Attributes:
      name: the weight's name.
      format: a name in `FORMATS`, or RAW.
      dialect: how the checkpoint packs it, a name in `DIALECTS`.
      shape: the logical shape, in the layout that the writer stores.
      dtype: dtype of its values.
      read: gives the raw arrays by field name; `codes` calls it.
    """

    name: str
    format: str
    dialect: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Mapping[str, np.ndarray]] = field(repr=False)

    @property
    def codes(self) -> Mapping[str, np.ndarray]:
        """The raw arrays: `code` holds the element codes, unsigned integers of `shape`."""
        return self.read()

    def values(self) -> np.ndarray:
        """The weight in its own dtype, every code kept."""
        return self.codes["code"].view(self.dtype).reshape(self.shape)

    def dequantize(self, dtype: Any = np.float32) -> np.ndarray:
        """The weight's values.

        Args:
          dtype: of the result; conversion rounds to nearest even.

        Raises:
          InputError: a RAW tensor, whose codes have no known values, asked for in another dtype.
        """
        if self.format == formats.RAW and np.dtype(dtype) != self.dtype:
            raise InputError(
                "values of a RAW tensor", tensor=self.name, expected=self.dtype, found=dtype
            )
        with np.errstate(invalid="ignore", over="ignore"):  # signalling NaNs; overflow to Inf
            return self.values().astype(dtype)


class Checkpoint:
    """Weights by name.

    Args:
      source: where it was opened, for messages and reports.
      tensors: its weights, in the order of the files.
      config: `config.json` (with `generation_config.json`'s keys that it lacks), if there is one.
    """

    def __init__(
        self, source: Path, tensors: Iterable[Tensor], config: Mapping[str, Any] | None = None
    ):
        self.source = source
        self.config = config
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

    def read_all(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Every weight and its values in its own dtype, in order, one at a time."""
        for tensor in self._tensors.values():
            yield tensor, tensor.values()

    def read_text(self, file: str) -> str | None:
        """A text file that lies beside the weights, or None if there is none."""
        path = self.source / file
        return decode_text(path, path.read_bytes()) if path.is_file() else None


def decode_text(file: Path, data: bytes) -> str:
    """UTF-8 text, or an error that names the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError("no UTF-8 text", file=file) from error
