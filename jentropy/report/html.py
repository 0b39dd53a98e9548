"""A report as one HTML file that needs nothing else: tables, and the figures as SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from jentropy.entropy import EntropyReport, counted

from . import figures

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def write_html(reports: EntropyReport | Sequence[EntropyReport], file: str | Path) -> None:
    """Writes a page about one report, or several to compare.

    Args:
      reports: what to show.
      file: the page; its folder is made if it is missing.

    Raises:
      UnsupportedError: Matplotlib is not installed.

    Example:
      >>> import tempfile, numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_html(report, f"{folder}/report.html")
      ...     Path(folder, "report.html").read_text().count("<svg")
      3
    """
    many = [reports] if isinstance(reports, EntropyReport) else list(reports)
    parts = [_section(report) for report in many]
    parts.append(f"<h2>Magnitudes</h2>{_svg(figures.magnitude_figure(many))}")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>jentropy report</title><style>{_STYLE}</style></head><body>"
        f"<h1>Entropy of model weights</h1>{''.join(parts)}</body></html>\n"
    )
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _section(report: EntropyReport) -> str:
    formats = _table(
        ("format", "weights", "allocated", "entropy", "joint", "used"),
        (
            (
                *counted(name, row),
                f"{row.allocated_bits:.2f}",
                f"{row.entropy_bits:.3f}",
                "" if row.joint_entropy_bits is None else f"{row.joint_entropy_bits:.3f}",
                f"{row.used_fraction:.1%}",
            )
            for name, row in report.formats.items()
        ),
    )
    tensors = _table(
        ("tensor", "format", "shape", "entropy", "joint"),
        (
            (
                t.name,
                t.format,
                " x ".join(map(str, t.shape)),
                f"{t.entropy_bits:.3f}",
                "" if t.joint_entropy_bits is None else f"{t.joint_entropy_bits:.3f}",
            )
            for t in report.tensors
        ),
    )
    return (
        f"<h2>{html.escape(report.source)}</h2><p>{report.headline}; bits per weight</p>"
        f"{_svg(figures.bits_figure(report))}{formats}"
        f"{_svg(figures.tensor_figure(report))}"
        f"<details><summary>{len(report.tensors)} tensors</summary>{tensors}</details>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"


def _svg(figure: figures.Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
