"""The figures of a report, drawn with Matplotlib (extra `report`): fit for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from jentropy.entropy import EntropyReport
from jentropy.entropy.contexts import CONTEXTS
from jentropy.errors import UnsupportedError
from jentropy.formats import RAW

from .labels import FIELD_COLORS, OTHER_COLOR, UNUSED, Look, listed, looks_of
from .layers import layers

Figure: TypeAlias = Any  # matplotlib's, which is imported at first use
_LEAST_GAIN = 1e-4  # bits; what is below tells nothing worth a bar
Reports: TypeAlias = EntropyReport | Sequence[EntropyReport]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window.

    Args:
      width, height: in inches.

    Raises:
      UnsupportedError: Matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise UnsupportedError(
            "figures",
            expected="the package matplotlib",
            found="none",
            hint="install the extra 'report'",
        ) from error
    return figure.Figure(figsize=(width, height), layout="constrained")


def bits_figure(reports: Reports) -> Figure:
    """Where the bits go: a bar for each format of each source, entropy stacked by field.

    Args:
      reports: one report, or several to compare.

    Returns:
      A figure of Matplotlib's.

    Example:
      >>> import numpy as np, jentropy
      >>> bits = bits_figure(jentropy.analyze({"w": np.ones((4, 4), np.float16)}))
      >>> [text.get_text() for text in bits.axes[0].get_yticklabels()]
      ['FP16']
    """
    many = listed(reports)
    rows = sorted(
        (
            (name, look.label, row)
            for report, look in zip(many, looks_of(many), strict=True)
            for name, row in report.formats.items()
            if name != RAW
        ),
        key=lambda one: (-one[2].allocated_bits, one[0]),
    )
    figure = new_figure(7, 1.2 + 0.3 * max(1, len(rows)))
    axes = figure.subplots()
    for y, (_, _, row) in enumerate(rows):
        left = 0.0
        for name, field in row.fields.items():
            color = FIELD_COLORS.get(name, OTHER_COLOR)
            axes.barh(y, field.entropy_bits, left=left, color=color, label=name.replace("_", " "))
            left += field.entropy_bits
        axes.barh(y, row.allocated_bits - left, left=left, color=UNUSED, label="unused")
        axes.text(row.allocated_bits, y, f" {row.used_fraction:.1%}", va="center", fontsize=8)
    several = len(many) > 1
    names = [f"{label}, {name}" if several else name for name, label, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    widest = max([row.allocated_bits for *_, row in rows], default=1.0)
    axes.set_xlim(0, widest * 1.1)
    axes.set_xlabel("bits per weight")
    keys = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if keys:
        figure.legend(
            keys.values(),
            keys.keys(),
            loc="outside upper center",
            ncols=8,
            fontsize=7,
            frameon=False,
        )
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def magnitude_figure(reports: Reports) -> Figure:
    """Density of log2 |w|, and the same shifted by its mean and scaled by its deviation.

    Trained models fall on one curve. Lines of quantised sources are dashed; bars at the left are
    the shares of weights below 2^-16, which are in no curve.

    Args:
      reports: one report, or several to compare.

    Returns:
      A figure of Matplotlib's.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"w": np.arange(1, 9, dtype=np.float16)})
      >>> [line.get_label() for line in magnitude_figure([report]).axes[0].lines]
      ['pytree']
    """
    many = listed(reports)
    figure = new_figure(7, 3)
    plain, scaled = figure.subplots(1, 2)
    looks = looks_of(many)
    for i, (report, look) in enumerate(zip(many, looks, strict=True)):
        sizes = report.magnitudes
        if not sizes.counted:
            continue
        line = {"color": _color(look), "linestyle": "--" if look.quantised else "-"}
        points, density = sizes.density()
        plain.plot(points, density, label=look.label, linewidth=1.2, **line)
        plain.bar(
            -19 + 2 * i / len(many), sizes.small_fraction, 1.6 / len(many), color=_color(look)
        )
        if sizes.deviation:
            x, y = (points - sizes.mean) / sizes.deviation, density * sizes.deviation
            scaled.semilogy(x, np.where(y > 1e-6, y, np.nan), linewidth=1.2, **line)
    plain.set_xlabel("log2 |w| (bars: below 2^-16)")
    plain.set_ylabel("density")
    scaled.set_xlabel("(log2 |w| - mean) / standard deviation")
    scaled.set_xlim(-5, 4)
    scaled.set_ylim(1e-5, 1)
    if plain.lines:
        figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    for axes in (plain, scaled):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def layers_figure(report: EntropyReport) -> Figure | None:
    """Share of the bits that is used, by layer and role.

    Args:
      report: of one source.

    Returns:
      A figure of Matplotlib's; None if no tensor's name tells of a layer.

    Example:
      >>> import numpy as np, jentropy
      >>> report = jentropy.analyze({"layers.0.mlp.up_proj": np.ones((4, 4), np.float16)})
      >>> [text.get_text() for text in layers_figure(report).axes[0].get_yticklabels()]
      ['up']
    """
    shown = layers(report)
    if shown is None:
        return None
    figure = new_figure(7, 0.8 + 0.25 * len(shown.roles))
    axes = figure.subplots()
    shares = np.array(shown.shares, np.float64) / 10
    image = axes.imshow(
        np.ma.masked_less(shares, 0),
        aspect="auto",
        cmap="viridis",
        vmin=shown.ends[0] / 10,
        vmax=shown.ends[1] / 10,
    )
    axes.set_yticks(range(len(shown.roles)), shown.roles, fontsize=8)
    step = max(1, len(shown.numbers) // 16)
    axes.set_xticks(range(0, len(shown.numbers), step), shown.numbers[::step], fontsize=8)
    axes.set_xlabel("layer")
    figure.colorbar(image, label="% of the bits used")
    return figure


def contexts_figure(reports: Reports) -> Figure | None:
    """What contexts save, with intervals of 95%.

    Args:
      reports: one report, or several to compare.

    Returns:
      A figure of Matplotlib's; None if contexts were not measured.

    Example:
      >>> import numpy as np, jentropy
      >>> contexts_figure(jentropy.analyze({"w": np.ones(4, np.float16)})) is None
      True
    """
    many = listed(reports)
    pairs = zip(many, looks_of(many), strict=True)
    known = [(report.contexts, look) for report, look in pairs if report.contexts]
    if not known:
        return None
    figure = new_figure(7, 2.6)
    axes = figure.subplots()
    for i, (gains, look) in enumerate(known):
        places = [(j, gains[name]) for j, name in enumerate(CONTEXTS) if name in gains]
        axes.bar(
            [j + 0.8 * (i + 0.5) / len(known) - 0.4 for j, _ in places],
            [gain.bits for _, gain in places],
            0.8 / len(known),
            yerr=[gain.bits - gain.interval[0] for _, gain in places],
            color=_color(look),
            label=look.label,
        )
    axes.set_xticks(range(len(CONTEXTS)), CONTEXTS)
    axes.set_ylabel("bits per weight")
    axes.set_yscale("log")
    axes.set_ylim(_LEAST_GAIN, 4)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _color(look: Look) -> tuple[float, float, float]:
    from matplotlib.colors import hsv_to_rgb

    red, green, blue = hsv_to_rgb((look.hue / 360, 0.85, 0.9 - 0.35 * look.size))
    return float(red), float(green), float(blue)
