"""The report: one page, all of it there, nothing of it from elsewhere, and honest in its first sentence."""

import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise

import numpy as np
import pytest

from halfstep.errors import ConfigError, DataError
from halfstep.evaluation import Interval
from halfstep.report import page, page_tables
from halfstep.report.images import grids
from halfstep.report.page import render, write
from halfstep.report.words.numbers import (
    big,
    DASH,
    exact,
    figure,
    MINUS,
    percent,
    places,
    ratio,
    seconds,
)
from tests.support.browser import needs_chromium, opened
from tests.support.evidence import evidence, pictures, rows_of, typed
from tests.support.pages import Page

SECTIONS = [
    *("samples", "quality", "gate", "fidelity", "drift", "memorisation", "training", "cost", "made")
]


@pytest.fixture(scope="module")
def text():
    return render(typed(evidence(), pictures()))


@pytest.fixture(scope="module")
def read(text):
    return Page(text)


def page_of(change, shown=None):
    content = evidence()
    change(content)
    return Page(render(typed(content, shown)))


# ---- the page


def test_it_is_written_whole_and_small_and_always_the_same(tmp_path, text):
    read_back = json.loads(json.dumps(evidence()))
    path = write(typed(read_back, pictures()), tmp_path / "run" / "report.html")
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == text
    assert path.stat().st_size < 400_000
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_nothing_comes_from_elsewhere(text, read):
    assert not read.of("script") and not read.of("iframe") and not read.of("object")
    for _, attrs in read.tags:
        for name in ("src", "href", "srcset", "data"):
            if value := attrs.get(name):
                assert value.startswith(("data:", "#")), value
        assert not [name for name in attrs if name.startswith("on")]
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)


def test_every_section_and_figure_is_there(read):
    sections = [attrs["id"] for attrs in read.of("section")]
    assert sections == SECTIONS
    figures = {attrs["id"] for attrs in read.of("figure")}
    assert figures == {f"figure-{name}" for name in ("quality", "ratios", "fidelity", "training")}
    drawings = read.of("svg")
    assert [d["class"] for d in drawings] == ["wide", "narrow"] * 4
    assert all(d["role"] == "img" and len(d["aria-label"]) > 60 for d in drawings)
    assert len(read.of("img")) == 5 * 12 + 4 * 12 + 6 * 3  # samples, differences, pairs with theirs


def test_links_and_labels_lead_somewhere(text, read):
    ids = read.ids()
    assert len(ids) == len(set(ids))
    expected = {
        attrs["href"][1:] for _, attrs in read.tags if attrs.get("href", "").startswith("#")
    }
    expected |= {attrs["aria-labelledby"] for _, attrs in read.tags if "aria-labelledby" in attrs}
    expected |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert expected <= set(ids)
    assert set(SECTIONS[1:]) <= expected


def test_headings_do_not_skip(read):
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_the_head_has_the_headline_tiles_pictures_and_then_the_sentence(read):
    text = read.text
    places = [
        "4 steps keep the quality of 64; 2 steps do not",
        "steps kept 4 of the teacher",
        "times faster 16 at 4 steps",
        "training 2.36 min",
        "Every column starts from the same noise",
        "4 network calls keep the quality of 64: Fréchet distance 1.04",
        "The student is better than the undistilled teacher at 4, 2 and 1 network calls",
        "Alarm. Drift at 1 network call: fine detail +9 %",
        "How far 2,000 samples",
    ]
    found = [text.index(place) for place in places]
    assert found == sorted(found)
    assert text.count("fine detail +9 %, outside") == 1  # a warning is said once


def student_lines(content):
    report = typed(content)
    return [
        page_tables.student_line(report, *pair)
        for pair in zip(report.students, report.verdicts, strict=True)
    ]


def test_the_table_compares_at_equal_calls(read):
    eight, four, *_ = student_lines(evidence())
    assert [row.sampler for row in eight.baselines] == ["dpmpp-2m"]
    assert (eight.good, eight.better) == ("yes", "cannot tell")
    assert (four.good, four.better) == ("yes", "yes")
    assert eight.difference == pytest.approx(0.178 - 0.173)
    assert eight.less_floor == pytest.approx((0.178 - 0.096) / (0.173 - 0.096))
    assert "0.178 0.172 to 0.184" in read.text and "+0.005" in read.text and "1.06" in read.text


CHANCE = "of classes by chance, as the data has no labels"


@pytest.mark.parametrize(
    "floor, note, sentence",
    [
        (
            0.096, "",
            "The sampling floor, 0.096, is what as many perfect samples would score on average: no sampler "
            "that does not copy the data can be expected to score lower.",
        ),
        (
            0.096, CHANCE,
            f"The sampling floor, 0.096, is what as many perfect samples would score on average, {CHANCE}.",
        ),
        (0.0, "unknown: 1 of the 2 classes", "The sampling floor is unknown: 1 of the 2 classes."),
    ],
)  # fmt: skip
def test_the_page_says_the_floor_and_what_is_wrong_with_it(floor, note, sentence):
    content = evidence()
    content["measure"] |= {"floor": floor, "floor_note": note}
    text = Page(render(typed(content, pictures()))).text
    assert sentence in text and ("be expected to score lower" in text) == (not note)


@pytest.mark.parametrize("floor", [0.168, 0.0])
def test_no_ratio_less_floor_where_the_teacher_may_be_below_it_or_it_is_unknown(floor):
    content = evidence()
    content["measure"]["floor"] = floor  # the teacher's interval is from 0.167
    assert {line.less_floor for line in student_lines(content)} == {None}


def test_the_pictures_come_back_bit_by_bit(read):
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    shown = pictures()["grid"].reshape(60, 8, 8)
    for k in (0, 13, 59):
        source = read.of("img")[k]["src"].removeprefix("data:image/png;base64,")
        assert (np.asarray(Image.open(BytesIO(b64decode(source)))) == shown[k]).all()


def test_what_comes_from_data_is_escaped():
    def bad(name):
        return f"<script>{name}('$x$')</script>\" onload=\"x 日本"

    content, shown = evidence(), pictures()
    content["run"] |= {
        "folder": bad("folder"),
        "config": {bad("key"): [bad("list")], "a": bad("value")},
    }
    content["run"]["gate"] |= {"stopped": bad("stopped"), "best": bad("best")}
    content["provenance"]["command"] = bad("command")
    content["rows"][1] |= {"name": bad("name"), "sampler": bad("sampler")}
    content["training"] = [{**line, "stage": bad("stage")} for line in content["training"]]
    shown["grid_labels"] = np.array([bad("label")] * 5)
    text = render(typed(content, shown))
    assert "<script" not in text
    read = Page(text)
    assert not [attrs for _, attrs in read.tags if any(key.startswith("on") for key in attrs)]
    everything = " ".join(read.texts) + " ".join(str(v) for _, a in read.tags for v in a.values())
    named = (
        "folder",
        "key",
        "list",
        "value",
        "stopped",
        "best",
        "command",
        "name",
        "sampler",
        "stage",
    )
    for name in (*named, "label"):
        assert re.search(rf"<script>{name}\(.\$x\$", unescape(everything)), name


def test_without_what_was_not_measured():
    def stripped(content):
        content["run"] = {"folder": "bare", "config": {}, "gate": None, "cost": None}
        content["provenance"] |= dict.fromkeys(("torch", "commit"))
        content["training"] = []
        for row in content["rows"]:
            distance = row["distances"]["frechet_distance"]
            row["distances"] = dict.fromkeys(row["distances"]) | {"frechet_distance": distance}
            row |= dict.fromkeys(("ratio", "fidelity", "split", "memorisation", "drift", "cost"))

    read = page_of(stripped)
    assert [attrs["id"] for attrs in read.of("section")] == ["quality", "made"]
    assert [attrs["id"] for attrs in read.of("figure")] == ["figure-quality"]
    _, _, rest = read.text.partition("steps kept")
    head, _, body = rest.partition("Nothing is decided, as")
    assert "None" not in read.text and "not measured" not in body
    assert head.count("not measured") == 3 and head.count("not recorded") == 1  # tiles
    assert "precision" not in read.text.replace("Inception score, precision and recall", "")


def test_only_a_teacher():
    def change(content):
        content["rows"] = content["rows"][:1]

    read = page_of(change)
    assert "Only the teacher was measured; the run has no student" in read.text
    assert "Baselines" not in read.text and not read.of("figure")[0].get("class")


def test_one_student_one_update_and_negative_ends():
    def change(content):
        content["rows"] = [content["rows"][0], rows_of(content, "student")[-1]]
        content["rows"][1]["distances"]["frechet_distance"] |= {"low": -0.01}
        content["training"] = content["training"][:1]

    read = page_of(change)
    assert len(read.of("svg")) == 8
    assert f"{MINUS}0.010 to" in read.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(bad, tmp_path):
    report = typed(evidence())
    first, update = report.rows[0], report.training[3]
    distance = replace(first.distances.frechet_distance, low=bad)
    row = replace(first, distances=replace(first.distances, frechet_distance=distance))
    updates = (*report.training[:3], replace(update, loss=bad))
    config = {"x": bad, "betas": [0.9, bad]}
    for where, change in {
        "rows[0].distances.frechet_distance.low": {"rows": (row, *report.rows[1:])},
        "training[3].loss": {"training": updates},
        "run.config.x": {"run": replace(report.run, config=config)},
        "run.config.betas[1]": {"run": replace(report.run, config={"betas": [0.9, bad]})},
    }.items():
        with pytest.raises(DataError, match=re.escape(where)):
            write(replace(report, **change), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_is_too_large_is_refused(tmp_path):
    content = evidence()
    content["run"]["config"]["long"] = "x" * 5_000_000
    with pytest.raises(ConfigError, match="under 5,000,000"):
        write(typed(content), tmp_path / "report.html")


def test_a_long_training_stays_small_and_keeps_its_extremes():
    lines = [
        {"stage": "0008-steps", "update": k, "loss": 1.0 + (k == 7000), "rate": 1e-3}
        for k in range(1, 20_001)
    ]
    content = evidence() | {"training": lines}
    assert len(render(typed(content))) < 250_000
    from halfstep.report.plots.training import stage_spans

    [span] = stage_spans(typed(content).training)
    assert len(span.pieces) <= 160 and max(piece.high for piece in span.pieces) == 2.0
    assert span.updates == 20_000


# ---- the pictures


def test_large_pictures_are_reduced_and_it_is_said():
    rng = np.random.default_rng(0)
    shown = {
        "grid": rng.integers(0, 256, (5, 8, 256, 256, 3), dtype=np.uint8),
        "grid_labels": np.array(list("abcde")),
    }
    sheet = grids.sheets(shown).grid
    assert (sheet.shown, sheet.size, sheet.columns, sheet.pixelated) == (128, 256, 8, False)
    text = render(typed(evidence(), shown))
    assert len(text) < page.LIMIT and "Reduced from 256 to 128 pixels" in text


@pytest.mark.parametrize(
    "shape, kind, labels",
    [
        ((5, 12, 8, 8), np.uint8, 5),
        ((5, 12, 8, 8, 2), np.uint8, 5),
        ((5, 12, 8, 8, 1), np.float32, 5),
        ((5, 12, 8, 8, 1), np.uint8, 4),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(shape, kind, labels):
    with pytest.raises(ConfigError, match="'grid"):
        grids.sheets({"grid": np.ones(shape, kind), "grid_labels": np.array(["a"] * labels)})


def test_more_pictures_than_fit_are_refused():
    many = np.random.default_rng(0).integers(0, 256, (40, 800, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="fewer rows or columns"):
        grids.sheets({"grid": many, "grid_labels": np.array(["a"] * 40)})


# ---- numbers


def test_numbers():
    assert figure(-0.0004, 3) == "0.000" and figure(-1234.5, 1) == f"{MINUS}1,234.5"
    assert [places([v]) for v in (0.187, 1.2, 0.0031, 240.0)] == [3, 2, 5, 0] and places([]) == 3
    assert [exact(v) for v in (1.1, 1.125, 2)] == ["1.10", "1.125", "2.00"]
    assert [percent(v) for v in (0.09, -0.012, 0.0001)] == ["+9.0 %", f"{MINUS}1.2 %", "0.0 %"]
    assert ratio(Interval(1.07, 1.03, 1.104), 1.1) == "1.070 (1.030 to 1.104)"
    assert ratio(Interval(1.07, 1.03, 1.1), 1.1) == "1.07 (1.03 to 1.10)"
    times = (7200, 141.7, 2.1, 0.0084, 2.7e-4, 0, None)
    shown = ["2.00 h", "2.36 min", "2.10 s", "8.40 ms", "270 µs", "0.00 µs", DASH]
    assert [seconds(v) for v in times] == shown
    edges = (3599.0, 59.98, 0.9996, 0.9994, 9.4e-7, 9.996e-6, 99.96e-6)
    shown = ["1.00 h", "1.00 min", "1.00 s", "999 ms", "0.94 µs", "10.0 µs", "100 µs"]
    assert [seconds(v) for v in edges] == shown
    assert [big(v) for v in (999, 999_499, 999_501, 9_996)] == ["999", "999 k", "1.00 M", "10.0 k"]
    counts = (331_024, 6_120_000, 12, 0, None)
    assert [big(v) for v in counts] == ["331 k", "6.12 M", "12", "0", DASH]
    assert big(58_000_000, "B") == "58.0 MB"


# ---- a browser


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_a_word_of_complaint(width, tmp_path, text):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"""<iframe id=f src=report.html width={width} height=800 style="border:0"></iframe><script>
        onload = () => {{ const d = f.contentDocument, seen = q => [...d.querySelectorAll(q)].filter(
            e => e.getBoundingClientRect().height > 5);
        const root = d.documentElement;
        document.title = [root.clientWidth, root.scrollWidth, seen("svg").length, seen("img").filter(
            e => e.naturalWidth == 8).length, seen("svg text").length].join(" ") }}</script>"""
    )
    dom = opened(tmp_path / "frame.html", tmp_path / "profile")
    width_inside, wide, drawings, shown, words = map(
        int, re.search("<title>(.*)</title>", dom)[1].split()
    )
    assert wide <= width_inside <= width
    assert (drawings, shown) == (4, 126) and words > 30
