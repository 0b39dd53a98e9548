"""How large weights are: smooth densities of log2 |w|, as they are and normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jentropy.entropy import EntropyReport, Magnitudes
from jentropy.entropy.magnitude import SMALLEST
from jentropy.report.labels import Look

from .elements import element, percent, text

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 34  # pixels around the drawing
_SCALE = 1000  # of the coordinates in it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    look: Look
    x: np.ndarray
    y: np.ndarray
    tip: str


def draw(reports: Sequence[EntropyReport], looks: Sequence[Look]) -> str:
    """Both drawings, and what the lines are."""
    known = [
        (report.magnitudes, look)
        for report, look in zip(reports, looks, strict=True)
        if report.magnitudes.counted
    ]
    if not known:
        return element("p", "No magnitudes.")
    keys = (
        element("li", element("i", class_="line", style=_style(look)), text(look.label),
                class_="dashed" if look.quantised else None, data_tip=_tip(one, look))
        for one, look in known
    )  # fmt: skip
    return "".join(
        (
            element("ul", *keys, class_="legend"),
            element("div", _raw(known), _normalised(known), class_="pair"),
        )
    )


def _tip(one: Magnitudes, look: Look) -> str:
    return (
        f"{look.label}: mean of log2 |w| {one.mean:.3f}, standard deviation {one.deviation:.3f}, "
        f"mode {one.mode():.2f}, {one.small_fraction:.3%} below 2^{SMALLEST}"
    )


def _style(look: Look) -> str:
    return f"--h:{look.hue:g};--s:{look.size:.2f}"


def _raw(known: Iterable[tuple[Magnitudes, Look]]) -> str:
    lines, small = [], []
    for one, look in known:
        x, y = one.density()
        inside = (x >= SMALLEST - 1) & (y > 0)
        lines.append(_Line(look=look, x=x[inside], y=y[inside], tip=_tip(one, look)))
        small.append((look, one.small_fraction, _tip(one, look)))
    last = max(float(line.x[line.y > 1e-4].max(initial=0)) for line in lines)
    first, last = SMALLEST - 3, math.ceil(last)
    most = max(float(line.y.max(initial=0)) for line in lines)
    most = max(most, *(share for _, share, _ in small)) * 1.05 or 1.0
    apart = (SMALLEST - 1 - first) / len(small)
    bins = [
        element(
            "rect",
            x=percent((first + 0.5 + i * apart - first) / (last - first)),
            width=percent(apart * 0.8 / (last - first)),
            y=percent(1 - share / most),
            height=percent(share / most),
            class_="small",
            style=_style(look),
            data_tip=tip,
        )
        for i, (look, share, tip) in enumerate(small)
        if share > 0
    ]
    ticks = [(v, str(v)) for v in range(SMALLEST + 2, last + 1, 4)]
    ticks = [(SMALLEST - 2, f"< {SMALLEST}"), *ticks]
    return _drawing(
        "Density of log2 |w|",
        "log2 |w|",
        lines,
        (first, last),
        (0.0, most),
        ticks,
        [(v, f"{v:g}") for v in _round_ticks(most)],
        lambda y: y,
        bins,
    )


def _normalised(known: Iterable[tuple[Magnitudes, Look]]) -> str:
    lines = []
    for one, look in known:
        if not one.deviation:
            continue
        x, y = one.density()
        x, y = (x - one.mean) / one.deviation, y * one.deviation
        inside = (x > -5) & (x < 4) & (y > 1e-5)
        lines.append(_Line(look=look, x=x[inside], y=y[inside], tip=_tip(one, look)))
    return _drawing(
        "The same, normalised",
        "(log2 |w| - mean) / standard deviation",
        lines,
        (-5, 4),
        (-5.0, 0.0),
        [(v, str(v)) for v in range(-4, 4, 2)],
        [(v, f"1e{v}") for v in range(-4, 1)],
        lambda y: np.log10(y),
        [],
    )


def _round_ticks(most: float) -> list[float]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if most / s <= 6 or s == 1.0)
    return [round(step * i, 2) for i in range(int(most / step) + 1)]


def _drawing(
    title: str,
    axis: str,
    lines: Sequence[_Line],
    across: tuple[float, float],
    up: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    scale: Callable[[np.ndarray], np.ndarray],
    under: Sequence[str],
) -> str:
    """A drawing as wide as its box: lines stretch, text does not."""

    def x_of(value: float) -> float:
        return (value - across[0]) / (across[1] - across[0])

    def y_of(value: float) -> float:
        return 1 - (value - up[0]) / (up[1] - up[0])

    grid, words = [], []
    for value, told in x_ticks:
        words.append(element("text", text(told), x=percent(x_of(value)), y=HEIGHT - TOP - 18,
                             text_anchor="middle"))  # fmt: skip
    inner = HEIGHT - TOP - BOTTOM
    for value, told in y_ticks:
        y = y_of(value)
        grid.append(element("line", x1="0%", x2="100%", y1=percent(y), y2=percent(y)))
        words.append(element("text", text(told), x=-4, y=round(y * inner + 4, 1),
                             text_anchor="end"))  # fmt: skip
    paths = []
    for line in lines:
        points = zip(
            (x_of(v) * _SCALE for v in line.x),
            (y_of(v) * _SCALE for v in scale(line.y)),
            strict=True,
        )
        d = "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points if -_SCALE < y < 2 * _SCALE)
        if d == "M":
            continue
        dashed = "curve dashed" if line.look.quantised else "curve"
        paths.append(element("path", d=d, class_=dashed, style=_style(line.look)))
        paths.append(element("path", d=d, class_="hit", data_tip=line.tip))
    stretched = element(
        "svg",
        *paths,
        viewBox=f"0 0 {_SCALE} {_SCALE}",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    plot = element("svg", *grid, *under, stretched, width="100%", height=inner, class_="plot")
    named = element("text", text(axis), x="50%", y=HEIGHT - TOP - 2, text_anchor="middle")
    drawing = element("svg", plot, *words, named, width="100%", height=HEIGHT - TOP, class_="axes")
    return element(
        "figure",
        element("figcaption", text(title)),
        element("div", drawing, class_="drawing", role="img", aria_label=title),
    )
