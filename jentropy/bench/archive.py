"""Suite `archive`: size and speed of the archive codec, beside what else is installed.

Every coder gets the same tensors in this process, and all take turns. Sizes include what a
decoder needs beside the code words; `jentropy` is in memory, `jentropy on disk` the compressed
checkpoint, `Orbax` a stock checkpoint of the same tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jentropy
from jentropy.containers import is_compressed

from .coders import others
from .dense import bytes_of, tensors
from .measure import Result, on_one_core, side_by_side

Coder = tuple[int, Callable[[], Any], Callable[[], Any]]  # bytes; encodes and decodes all tensors


def run(source: str | Path) -> list[Result]:
    """Figures of a checkpoint: bits per weight, and MB/s of its bytes where there is a time.

    Args:
      source: what `jentropy.open_checkpoint` takes.

    Returns:
      A row for each entropy, coder and kind of file.
    """
    tree = tensors(source)
    weights = sum(values.size for values in tree.values())
    raw = sum(values.nbytes for values in tree.values())
    packed = jentropy.compress(tree)
    coders = dict(_coders(tree, packed))
    encode_seconds = side_by_side({name: encode for name, (_, encode, _) in coders.items()})
    decode_seconds = side_by_side({name: decode for name, (_, _, decode) in coders.items()})
    resident = jentropy.to_resident(packed, backend="reference")

    def row(name: str, size: float, **figures: float) -> Result:
        return Result(name=name, figures={"bits_per_weight": 8 * size / weights, **figures})

    return [
        row("raw", raw),
        *(row(name, bits / 8) for name, bits in _entropies(tree).items()),
        *(
            row(
                name,
                coder[0],
                encode_mb_per_s=raw / 1e6 / encode_seconds[name],
                decode_mb_per_s=raw / 1e6 / decode_seconds[name],
            )
            for name, coder in coders.items()
        ),
        *(row(name, size) for name, size in _on_disk(tree).items()),
        row("resident", sum(leaf.nbytes for leaf in jax.tree.leaves(resident))),
    ]


def _coders(tree: Mapping[str, np.ndarray], packed: Any) -> Iterable[tuple[str, Coder]]:
    leaves = jax.tree.leaves(packed, is_leaf=is_compressed)
    size = sum(leaf.nbytes + len(leaf.header.coding.head) for leaf in leaves)
    compress, decompress = partial(jentropy.compress, tree), partial(jentropy.decompress, packed)
    yield "jentropy", (size, compress, decompress)
    yield "jentropy, one thread", (size, on_one_core(compress), on_one_core(decompress))
    for name, encode, decode in others():
        coded = {key: encode(values) for key, values in tree.items()}
        for key, values in tree.items():
            if bytes(decode(coded[key])) != values.tobytes():
                raise AssertionError(f"{name} does not give {key} back")
        yield (
            name,
            (
                sum(len(part) for part in coded.values()),
                partial(_each, encode, tree.values()),
                partial(_each, decode, coded.values()),
            ),
        )


def _each(run: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [run(item) for item in items]


def _entropies(tree: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Bits of all tensors together."""
    report = jentropy.analyze(tree)
    pooled = report.formats.values()
    return {
        "split entropy, pooled": sum(f.weights * f.entropy_bits for f in pooled),
        "joint entropy, pooled": sum(
            f.weights * f.joint_entropy_bits for f in pooled if f.joint_entropy_bits is not None
        ),
        "joint entropy, per tensor": sum(
            tree[t.name].size
            * (t.entropy_bits if t.joint_entropy_bits is None else t.joint_entropy_bits)
            for t in report.tensors
        ),
    }


def _on_disk(tree: Mapping[str, np.ndarray]) -> dict[str, int]:
    from orbax.checkpoint import v1 as ocp

    with tempfile.TemporaryDirectory() as folder:
        paths = {"jentropy on disk": Path(folder, "ours"), "Orbax": Path(folder, "orbax")}
        jentropy.save(paths["jentropy on disk"], tree)
        ocp.save(paths["Orbax"], tree)
        return {name: bytes_of(path) for name, path in paths.items()}
