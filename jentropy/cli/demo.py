"""`jentropy demo`."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

import jentropy
from jentropy.errors import CheckError, UnsupportedError
from jentropy.pallas_kernels import default_backend

from .analyze import print_report
from .arguments import Arguments
from .console import print_table, size_of

HELP = "measure, compress, verify and run the bundled model"
PROMPT = "class Parser:\n    def __init__(self):\n"
NEW_TOKENS, TEMPERATURE, SEED = 64, 0.5, 0
TOLERANCE = 0.02  # of the largest logit: layers of bfloat16 that add up in different orders
ARGUMENTS: Arguments = {
    "--out": {
        "type": Path,
        "default": Path("demo-output"),
        "metavar": "DIR",
        "help": "for the report",
    }
}


def run(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    models = jentropy.models
    source = models.BUNDLED

    report = dataclasses.replace(jentropy.analyze(source), source=source.name)
    print_report(report)
    try:
        jentropy.report.write_html(report, arguments.out / "report.html")
        written = jentropy.report.write_png(report, arguments.out)
        print(f"\nreport: {arguments.out / 'report.html'} and {len(written)} figures beside it")
    except UnsupportedError as error:
        print(f"\nno report: {error}")

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "compressed"
        jentropy.compress_checkpoint(source, packed)
        inspection = jentropy.inspect(packed)
        verified = jentropy.verify(packed, against=source)
        dense, compressed = models.load(source), models.load(packed)
        tokenizer = models.load_tokenizer(packed)
        ids = jnp.asarray([tokenizer.encode(PROMPT).ids])
        logits = nnx.jit(lambda model, ids: model(ids))
        compared = agreement(logits(dense, ids), logits(compressed, ids))
        _, text = models.continue_text(
            compressed,
            tokenizer,
            PROMPT,
            max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
            seed=SEED,
        )
        weights = inspection.weights
        dense_bytes, resident_bytes = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
            for model in (dense, compressed)
        )
        pooled = report.formats["BF16"]
        rows = [
            ("weights as published", dense_bytes),
            ("  entropy of the fields", pooled.entropy_bits * weights / 8),
            (
                "  entropy of whole codes, per tensor",
                inspection.per_tensor_joint_bits * weights / 8,
            ),
            ("compressed checkpoint on disk", inspection.archive_bytes),
            ("in device memory, run from there", resident_bytes),
        ]
        print()
        print_table(
            f"{weights:,} weights",
            ("", "bytes", "bits per weight", "of published"),
            [
                (name, f"{size:,.0f}", f"{8 * size / weights:.3f}", f"{size / dense_bytes:.1%}")
                for name, size in rows
            ],
        )
        print(
            f"\nverified: {verified.files} files, {verified.bytes:,} of {size_of(source):,} bytes "
            f"come back the same\nlogits: {compared}\n"
            "\ngenerated from the compressed weights:\n",
        )
        print(text)
    print(f"\ndone in {time.perf_counter() - began:.0f} s")
    return 0


def agreement(dense: jax.Array, compressed: jax.Array) -> str:
    """How logits from compressed weights compare with those from dense ones.

    Backend "reference" multiplies what it decodes as XLA multiplies dense weights: on a CPU the
    same program, the same bits. Kernels add up in an order of their own.

    Raises:
      CheckError: they differ more than that explains.
    """
    if bool((dense == compressed).all()):
        return "bitwise those of the uncompressed weights"
    backend = default_backend()
    error = float(jnp.abs(dense - compressed).max() / jnp.abs(dense).max())
    exact = backend == "reference" and jax.default_backend() == "cpu"
    if exact or not error <= TOLERANCE:
        raise CheckError(
            f"logits from compressed and from dense weights differ by {error:.1e} of the largest"
        )
    return f"within {error:.1e} of the uncompressed weights', added up in another order ({backend})"
