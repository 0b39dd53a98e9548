"""What a type checker sees of the public API: `make typecheck` runs it over this file.

Nothing here is run. A line that is wrong says with which error, and mypy tells if it is not found.
"""

from pathlib import Path
from typing import assert_type

import jax.numpy as jnp

import jentropy


def names_that_are_not_there() -> None:
    jentropy.compres({})  # type: ignore[attr-defined]
    jentropy.models.lod("checkpoint")  # type: ignore[attr-defined]
    jentropy.report.write_htm()  # type: ignore[attr-defined]
    jentropy.formats.MXFP5  # type: ignore[attr-defined]  # noqa: B018
    jentropy.open_checkpoint("path").nams()  # type: ignore[attr-defined]


def arguments_that_are_not_taken() -> None:
    jentropy.verify("path", agains="path")  # type: ignore[call-arg]
    jentropy.models.load("path", dtype="bfloat16")  # type: ignore[call-arg]
    jentropy.save(3, {})  # type: ignore[arg-type]


def results(path: Path) -> None:
    report = jentropy.analyze(path)
    assert_type(report, jentropy.EntropyReport)
    assert_type(report.formats["BF16"], jentropy.FormatReport)
    assert_type(report.formats["BF16"].fields["sign"], jentropy.FieldReport)
    assert_type(report.tensors[0], jentropy.TensorReport)
    checkpoint = jentropy.open_checkpoint(path)
    assert_type(checkpoint, jentropy.Checkpoint)
    assert_type(checkpoint.tensor("w"), jentropy.Tensor)
    assert_type(jentropy.inspect(path), jentropy.Inspection)
    assert_type(jentropy.verify(path), jentropy.Verified)
    assert_type(jentropy.models.load(path), jentropy.models.Decoder)
    weight = jentropy.QuantizedTensor(
        number_format=jentropy.formats.MXFP8,
        codes=jentropy.quantize(jnp.ones((32, 32)), jentropy.formats.MXFP8),
    )
    jentropy.matmul(jnp.ones((1, 32)), jentropy.to_resident(weight), transpose_w=True)
    raise jentropy.errors.InputError("path", file=path)
