"""Tensors as rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from jentropy.entropy import EntropyReport
from jentropy.entropy.contexts import CONTEXTS
from jentropy.errors import DestinationError

from .labels import FIELD_COLORS, listed

HEAD = (
    "source", "tensor", "format", "dialect", "role", "layer", "expert", "shape", "weights",
    "allocated_bits", "entropy_bits", "joint_entropy_bits", "described_bits", "wasted_bytes",
    *(f"{name}_bits" for name in FIELD_COLORS), *(f"{name}_context_bits" for name in CONTEXTS),
    "note",
)  # fmt: skip


def write_csv(reports: EntropyReport | Sequence[EntropyReport], file: str | Path) -> None:
    """Writes a row for every tensor.

    Args:
      reports: one report, or several.
      file: its folder is made if it is missing.

    Raises:
      DestinationError: it cannot be written.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_csv(report, f"{folder}/tensors.csv")
      ...     Path(folder, "tensors.csv").read_text().splitlines()[1][:20]
      'pytree,w,FP16,plain,'
    """
    many = listed(reports)
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(HEAD)
            for report in many:
                for tensor in report.tensors:
                    role = tensor.role
                    saved = (tensor.contexts.get(name) for name in CONTEXTS)
                    writer.writerow((
                        report.source, tensor.name, tensor.format, tensor.dialect,
                        role.name if role else "", role.layer if role else None,
                        role.expert if role else None, "x".join(map(str, tensor.shape)),
                        tensor.weights, tensor.allocated_bits, tensor.entropy_bits,
                        tensor.joint_entropy_bits, tensor.described_bits,
                        round(tensor.wasted_bytes),
                        *(tensor.fields.get(name) for name in FIELD_COLORS),
                        *(gain.bits if gain else None for gain in saved), tensor.note,
                    ))  # fmt: skip
    except OSError as error:
        raise DestinationError(f"cannot write: {error.strerror}", file=path) from error
