"""Suite `archive`: size and speed of the archive codec, beside what else is installed.

Every coder gets the same tensors in this process, and all take turns. Sizes include what a
decoder needs beside the code words; `jentropy` is in memory, `jentropy on disk` the compressed
checkpoint, `Orbax` a stock checkpoint of the same tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jentropy
from jentropy import formats
from jentropy.containers.tensor import is_compressed

from .coders import others
from .measure import Result, on_one_core, side_by_side


def run(source: str | Path) -> list[Result]:
    """Figures of a checkpoint: bits per weight, and MB/s of its bytes where there is a time."""
    checkpoint = jentropy.open_checkpoint(source)
    tree = {
        tensor.name: tensor.values(codes)
        for tensor, codes in checkpoint.read_all()
        if tensor.format != formats.RAW and tensor.dtype is not None
    }
    weights = sum(values.size for values in tree.values())
    raw = sum(values.nbytes for values in tree.values())
    results = [Result(name="raw", figures={"bits_per_weight": 8 * raw / weights})]
    results += _entropies(tree, weights)

    packed = jentropy.compress(tree)
    leaves = jax.tree.leaves(packed, is_leaf=is_compressed)
    own = sum(leaf.nbytes + len(leaf.header.coding.head) for leaf in leaves)
    compress, decompress = partial(jentropy.compress, tree), partial(jentropy.decompress, packed)
    stored = {"jentropy": own, "jentropy, one thread": own}
    encodes: dict[str, Callable[[], Any]] = {
        "jentropy": compress,
        "jentropy, one thread": on_one_core(compress),
    }
    decodes: dict[str, Callable[[], Any]] = {
        "jentropy": decompress,
        "jentropy, one thread": on_one_core(decompress),
    }
    for name, encode, decode in others():
        coded = {key: encode(values) for key, values in tree.items()}
        for key, values in tree.items():
            if bytes(decode(coded[key])) != values.tobytes():
                raise AssertionError(f"{name} does not give {key} back")
        stored[name] = sum(len(part) for part in coded.values())
        encodes[name] = partial(_each, encode, tree.values())
        decodes[name] = partial(_each, decode, coded.values())
    encode_seconds, decode_seconds = side_by_side(encodes), side_by_side(decodes)
    results += [
        Result(
            name=name,
            figures={
                "bits_per_weight": 8 * size / weights,
                "encode_mb_per_s": raw / 1e6 / encode_seconds[name],
                "decode_mb_per_s": raw / 1e6 / decode_seconds[name],
            },
        )
        for name, size in stored.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        results += _on_disk(tree, weights, Path(folder))
    resident = jentropy.to_resident(packed, backend="reference")
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(resident))
    results.append(Result(name="resident", figures={"bits_per_weight": 8 * held / weights}))
    return results


def _each(run: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [run(item) for item in items]


def _entropies(tree: dict[str, np.ndarray], weights: int) -> list[Result]:
    report = jentropy.analyze(tree)

    def mean(key: str) -> float:
        pooled = report.formats.values()
        values = [(getattr(f, key), f.weights) for f in pooled if getattr(f, key) is not None]
        return sum(v * n for v, n in values) / weights

    sizes = {name: values.size for name, values in tree.items()}
    joint = [
        (t.entropy_bits if t.joint_entropy_bits is None else t.joint_entropy_bits) * sizes[t.name]
        for t in report.tensors
    ]
    return [
        Result(name="split entropy, pooled", figures={"bits_per_weight": mean("entropy_bits")}),
        Result(
            name="joint entropy, pooled", figures={"bits_per_weight": mean("joint_entropy_bits")}
        ),
        Result(name="joint entropy, per tensor", figures={"bits_per_weight": sum(joint) / weights}),
    ]


def _on_disk(tree: dict[str, np.ndarray], weights: int, folder: Path) -> list[Result]:
    from orbax.checkpoint import v1 as ocp

    jentropy.save(folder / "ours", tree)
    ocp.save(folder / "orbax", tree)
    return [
        Result(
            name=name,
            figures={
                "bits_per_weight": 8
                / weights
                * sum(p.stat().st_size for p in (folder / kind).rglob("*") if p.is_file())
            },
        )
        for name, kind in (("jentropy on disk", "ours"), ("Orbax", "orbax"))
    ]
