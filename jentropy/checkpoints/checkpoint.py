"""A checkpoint as its weights: names, formats, codes, values. Nothing is read unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jentropy import errors, formats
from jentropy.containers import trees
from jentropy.errors import InputError
from jentropy.formats import Format, QuantizedTensor

from . import slabs, torn
from .contents import StoredArray, decode_text
from .faults import read_file
from .unpacking import StoredCodes

Arrays = Mapping[str, np.ndarray]
Parts = Mapping[str, tuple[slice, ...] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One weight of a checkpoint: a `QuantizedTensor` that has a name.

    In a pytree it is a node that holds `weight`, and whatever is made of the tree has what is made
    of `weight` in its place: `compress` and `to_resident` take it as they take the weight.

    Attributes:
      name: the weight's name.
      weight: its codes and parameters, in the layout that the writer stores; on disk until they
        are asked for. Of an array that is stored as it is, the codes alone.
      dialect: how the checkpoint packs it, a name in `DIALECTS`.
      auxiliary: whether it serves the quantisation (scales of activations, indices) and is no
        weight of the model.
      note: why it is RAW, if it may be more; relative to its module.
      settled: stored arrays that belong to it and add nothing to its values.
      prefix: what its name begins with in a pipeline of several models; those of its arrays do not.

    Example:
      >>> import tempfile, jax.numpy as jnp, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": jnp.ones((2, 3), jnp.bfloat16)})
      ...     tensor = jentropy.open_checkpoint(f"{folder}/t").tensor("w")
      ...     tensor, tensor.codes["code"][0].tolist()
      (Tensor('w', BF16[2, 3]), [16256, 16256, 16256])
    """

    name: str
    weight: QuantizedTensor
    dialect: str = ""
    auxiliary: bool = False
    note: str = ""
    settled: tuple[StoredArray, ...] = ()
    prefix: str = ""

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.format}{list(self.shape)})"

    @property
    def number_format(self) -> Format:
        """Its element, and the parameters that its blocks share."""
        return self.weight.number_format

    @property
    def format(self) -> str:
        """Name of its format in reports; RAW if its codes have no known values."""
        return self.number_format.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its logical shape."""
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype | None:
        """Of its values; None if they have none of their own (a block format)."""
        return self.number_format.element.dtype if self.number_format.is_plain else None

    @property
    def stored(self) -> dict[str, StoredCodes]:
        """Its leaves that lie in stored arrays, by key."""
        leaves = self.weight.codes.items()
        return {key: leaf for key, leaf in leaves if isinstance(leaf, StoredCodes)}

    @property
    def parts(self) -> dict[str, str]:
        """Names of the stored arrays that it is made of, by key."""
        return {key: self.prefix + leaf.array.name for key, leaf in self.stored.items()}

    @property
    def codes(self) -> dict[str, np.ndarray]:
        """The raw arrays, unsigned integers: `code` of `shape`, and each parameter by name.

        A parameter's array has the weight's rank and an entry per block (`Parameter.grid`). With
        `group_index`, a column's parameters are those of that group.
        """
        stored = self.stored
        if stored.keys() != self.weight.codes.keys():  # in memory, or compressed
            leaves = trees.decompress(self.weight.codes)
            return {key: trees.as_array(leaf, self.name) for key, leaf in leaves.items()}
        # One array may hold several of them: it is read once.
        arrays = {leaf.array.name: leaf.array for leaf in stored.values()}
        values = {name: array.read() for name, array in arrays.items()}
        return {key: leaf.unpack(values[leaf.array.name]) for key, leaf in stored.items()}

    def runs(self) -> Iterator[Arrays]:
        """What `codes` gives, of a large weight in slabs of its rows."""
        return slabs.runs(self.weight, self.stored, lambda: self.codes)

    def values(self, codes: Arrays | None = None) -> np.ndarray:
        """The weight in its own dtype, every code kept.

        Args:
          codes: what `codes` gave, if that was read already.

        Returns:
          An array of `dtype` and `shape`, or of the shape of the codes that were given.

        Raises:
          InputError: a block format, whose values have no dtype of their own.
        """
        if self.dtype is None:
            raise InputError(
                f"{self.format} has no dtype of its own", tensor=self.name, hint="dequantize it"
            )
        codes = self.codes if codes is None else codes
        return codes["code"].view(self.dtype)

    def dequantize(self, dtype: Any = np.float32, codes: Arrays | None = None) -> np.ndarray:
        """The weight's values.

        Args:
          dtype: of the result; computed in float32 and rounded once, to nearest even.
          codes: what `codes` gave, if that was read already.

        Returns:
          An array of `dtype` and the weight's shape.

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


jax.tree_util.register_pytree_with_keys(
    Tensor,
    lambda tensor: (((jax.tree_util.GetAttrKey("weight"), tensor.weight),), None),
    lambda _, children: next(iter(children)),
)


class Unmade(Sequence[Tensor]):
    """Weights without parameters that are made when they are asked for.

    Args:
      names: of all.
      make: gives one by its place.

    Example:
      >>> Unmade(["w"], lambda place: None).names
      ['w']
    """

    def __init__(self, names: Sequence[str], make: Callable[[int], Tensor]):
        self.names = names
        self._make = make
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        if at not in self._made:
            self._made[at] = self._make(at)
        return self._made[at]


class Checkpoint:
    """Weights by name, unread: what `open_checkpoint` gives.

    Args:
      source: where it was opened, for messages and reports.
      tensors: its weights, in the order of the files.
      config: `config.json` (with `generation_config.json`'s keys that it lacks), if there is one.
      notes: what could not be recognised.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     jentropy.save(f"{folder}/t", {"w": np.ones(3), "b": np.zeros(2)})
      ...     checkpoint = jentropy.open_checkpoint(f"{folder}/t")
      ...     [(t.name, t.shape, codes["code"].dtype.name) for t, codes in checkpoint.read_all()]
      [('b', (2,), 'uint64'), ('w', (3,), 'uint64')]
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
        self._tensors: Sequence[Tensor] = tensors if isinstance(tensors, Unmade) else [*tensors]
        unmade = self._tensors if isinstance(self._tensors, Unmade) else None
        names = unmade.names if unmade else (tensor.name for tensor in self._tensors)
        self._places = {name: place for place, name in enumerate(names)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({errors.place(self.source)}, {len(self._places):,} tensors)"

    def names(self) -> list[str]:
        """Names of all weights, in the order of the files."""
        return list(self._places)

    def tensor(self, name: str) -> Tensor:
        """One weight, unread.

        Args:
          name: one of `names`.

        Returns:
          Its `Tensor`.

        Raises:
          InputError: no such weight.
        """
        if name not in self._places:
            raise InputError("no such tensor", file=self.source, tensor=name)
        return self._tensors[self._places[name]]

    def read_all(self, parts: Parts | None = None) -> Iterator[tuple[Tensor, Arrays]]:
        """Every weight and its codes, in order, one at a time.

        Args:
          parts: what is wanted of some weights, by name: slices of the codes of one that is stored
            as it is, of which no more is read than has to be; None: nothing.

        Yields:
          The `Tensor`, and what its `codes` gives, or that part of it.
        """
        parts = parts or {}
        for name, place in self._places.items():
            part, tensor = parts.get(name, ()), self._tensors[place]
            if part is not None:
                codes = tensor.codes
                yield tensor, codes | {"code": codes["code"][part]} if part else codes
                torn.expect_whole(self.source)

    def read_runs(self) -> Iterator[tuple[Tensor, Iterator[Arrays]]]:
        """Every weight and its codes, in order; those of a large one in runs.

        Yields:
          The `Tensor`, and what its `codes` gives of one run of its rows (or of its numbers, as one
          axis) after another, or of all at once. They are to be used up before the next tensor's.
        """
        for place in self._places.values():
            tensor = self._tensors[place]
            yield tensor, tensor.runs()
            torn.expect_whole(self.source)

    def read_text(self, file: str) -> str | None:
        """A text file that lies beside the weights.

        Args:
          file: its name.

        Returns:
          The text, or None if there is none.

        Raises:
          CorruptError: it is no UTF-8.
        """
        folder = self.source.parent if self.source.is_file() else self.source
        path = folder / file
        return decode_text(path, read_file(path)) if path.is_file() else None
