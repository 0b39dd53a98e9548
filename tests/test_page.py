"""The report's page, in a browser without a network."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import jentropy
from jentropy import formats
from jentropy.entropy import EntropyReport, TensorReport, role_of
from jentropy.formats import QuantizedTensor
from jentropy.report import labels, tensors_csv
from jentropy.report.page import page

from . import browser

RNG = np.random.default_rng(0)
SOURCES = 12
needs_browser = pytest.mark.skipif(browser.program() is None, reason="no Chromium is installed")


def values(scale: float) -> np.ndarray:
    return (RNG.standard_normal((64, 128)) * scale).astype(np.float32)


def weight(name: str, scale: float):
    if name == "BF16":
        return values(scale).astype(ml_dtypes.bfloat16)
    number_format = formats.FORMATS[name]
    codes = formats.quantize(values(scale), number_format)
    return QuantizedTensor(number_format=number_format, codes=codes)


@pytest.fixture(scope="module")
def reports() -> list[EntropyReport]:
    """Sources of several formats each."""
    names = ("BF16", "FP8_BLOCK", "MXFP8", "MXFP4", "NVFP4", "INT4")
    made = []
    for i in range(SOURCES):
        tree = {
            f"model.layers.{layer}.mlp.{part}_proj.weight": weight(name, 0.01 * (1 + i))
            for layer in range(2)
            for part, name in (("up", names[i % len(names)]), ("down", "BF16"))
        }
        made.append(jentropy.analyze(tree))
    return made


@pytest.fixture(scope="module")
def file(reports, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    jentropy.report.write_html(reports, path)
    return path


@pytest.fixture(scope="module")
def shown():
    with browser.browser() as page:
        yield page


def test_the_page_needs_nothing_else(file):
    text = file.read_text()
    assert not re.search(r"<link|(src|href)\s*=|@import|url\(", text)
    assert "</script>" not in text.split('id="data">')[1].split("</script>")[0]
    assert text.count("<h2>") == 8


def test_names_are_text_and_not_markup(tmp_path):
    tree = {"</script><b>layers.1.q_proj": np.ones((4, 4), np.float16)}
    text = page.page_of([jentropy.analyze(tree)])
    assert "</script><b>" not in text
    assert "\\u003c/script>\\u003cb>" in text


@pytest.mark.parametrize("length", [20, 4000])
def test_the_page_stays_small(length):
    tensors = [
        TensorReport(
            name=f"model.layers.{i}.{'x' * length}.q_proj.{i}",
            format="BF16",
            dialect="plain",
            shape=(100, i),
            allocated_bits=16.0,
            entropy_bits=10.5,
            joint_entropy_bits=10.4,
            described_bits=10.5,
            role=role_of("q_proj"),
        )
        for i in range(10_000)
    ]
    empty = jentropy.analyze({"w": np.ones((4, 4), np.float16)})
    report = EntropyReport(
        source="many",
        formats=empty.formats,
        tensors=tensors,
        magnitudes=empty.magnitudes,
        savings=empty.savings,
    )
    text = page.page_of([report] * 40)
    assert len(text.encode()) <= page.MOST_BYTES
    told = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert len(told["tensors"]) == page.data.TENSORS
    assert told["tensors"][0][5] == 100 * 9999  # the one that wastes most
    assert "398,000 more" in text


def test_labels_are_no_paths():
    def label(*sources):
        empty = jentropy.analyze({})
        made = [
            EntropyReport(source=s, formats={}, tensors=[], magnitudes=empty.magnitudes,
                          savings=empty.savings)
            for s in sources
        ]  # fmt: skip
        return [look.label for look in labels.looks_of(made)]

    assert label("/home/someone/models/pylm") == ["pylm"]
    assert label("/a/one/model", "/a/two/model/") == ["one/model", "two/model"]
    assert label("hf://org/name", "x") == ["name", "x"]
    assert label("x", "x") == ["x (1)", "x (2)"]


def test_csv_has_every_tensor(reports, tmp_path):
    jentropy.report.write_csv(reports, tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert tuple(rows[0]) == tensors_csv.HEAD
    assert len(rows) == sum(len(report.tensors) for report in reports)
    first, tensor = rows[0], reports[0].tensors[0]
    assert (first["tensor"], first["role"]) == (tensor.name, tensor.role.name)
    assert float(first["exponent_bits"]) == tensor.fields["exponent"]


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_goes_wrong_in_a_browser(shown, file, dark):
    shown.open(file, dark=dark)
    assert shown("document.querySelectorAll('.bar').length") >= 2 * SOURCES - 2
    assert shown("document.querySelectorAll('#tensors tbody tr').length") == 4 * SOURCES
    assert shown("document.querySelectorAll('.heatmap rect').length") == 4
    assert shown.trouble == []
    color = shown("getComputedStyle(document.body).backgroundColor")
    assert (color == "rgb(255, 255, 255)") != dark


@needs_browser
def test_chips_hide_bars(shown, file):
    shown.open(file)
    bars = "[...document.querySelectorAll('[data-format=MXFP4] .bar')].filter(b => b.offsetHeight)"
    chip = "document.querySelector('[data-chip=MXFP4]')"
    before = shown(f"{bars}.length")
    assert before == SOURCES // 6
    for expected, pressed in ((0, "false"), (before, "true")):
        shown(f"{chip}.click()")
        assert shown(f"{bars}.length") == expected
        assert shown(f"{chip}.getAttribute('aria-pressed')") == pressed


@needs_browser
@pytest.mark.parametrize(
    ("what", "told"),
    [(".bar rect", "pytree (1), BF16: sign carries 1.0000 of 1.0000 bits"), (".hit", "mean of"),
     (".bar .name", "bits, "), (".heatmap rect", "layer 0, up: ")],
)  # fmt: skip
def test_pointing_says_the_figures(shown, file, what, told):
    shown.open(file)
    where = shown(
        f"""(() => {{ const one = document.querySelector({what!r});
        one.scrollIntoView({{block: "center"}});
        const box = one.getBoundingClientRect();
        if (one.tagName !== "path") return [box.x + box.width / 2, box.y + box.height / 2];
        const middle = one.getPointAtLength(one.getTotalLength() / 2);
        const at = middle.matrixTransform(one.getScreenCTM());
        return [at.x, at.y]; }})()"""
    )
    shown.point(1, 1)
    assert shown("document.getElementById('tip').hidden")
    shown.point(*where)
    assert not shown("document.getElementById('tip').hidden")
    assert told in shown("document.getElementById('tip').textContent")


@needs_browser
def test_the_table_sorts_and_filters(shown, file):
    shown.open(file)
    column = (
        "[...document.querySelectorAll('#tensors tbody td:nth-child(7)')].map(c => +c.textContent)"
    )
    shown("document.querySelectorAll('#tensors th button')[6].click()")
    down = shown(column)
    assert down == sorted(down, reverse=True)
    shown("document.querySelectorAll('#tensors th button')[6].click()")
    assert shown(column) == down[::-1]
    shown(
        "const box = document.getElementById('filter'); box.value = 'MXFP4 layers.1';"
        "box.dispatchEvent(new Event('input'))"
    )
    names = shown("[...document.querySelectorAll('#tensors tbody tr')].map(r => r.textContent)")
    assert len(names) == SOURCES // 6
    assert all("MXFP4" in name and "layers.1" in name for name in names)


APART = (
    ".axes text",
    ".bar .name, .bar .share, .bars h3",
    ".legend li",
    ".chips button",
    "h2",
    ".heatmap > span, .ends span",
)
OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll(SELECTOR)].filter(e => e.getClientRects().length)
    .map(e => [e.textContent, e.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
  const found = [];
  boxes.forEach(([name, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) found.push([name, other]);
  }));
  return found;
})()"""


@needs_browser
@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_overlaps_and_nothing_scrolls_sideways(shown, file, width):
    shown.open(file, width=width)
    assert shown("document.documentElement.scrollWidth") <= width
    for selector in APART:
        assert shown(OVERLAPS.replace("SELECTOR", json.dumps(selector))) == [], selector
    assert shown(
        "[...document.querySelectorAll('.bar')].every(b => b.getBoundingClientRect().right <= "
        "innerWidth)"
    )
    assert shown.trouble == []
