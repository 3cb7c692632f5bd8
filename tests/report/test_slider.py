"""The page of sliders: every picture in it, the numbers that belong to them, readable without its script."""

import json
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from halfstep import storage, write_report
from halfstep.errors import ConfigError, DataError
from halfstep.evaluation.report_files import read_report
from halfstep.report import page, slider
from halfstep.report.guided_table import guided_pictures as shown, guided_view
from halfstep.report.slider import render, write
from halfstep.report.words.numbers import DASH
from tests.support.browser import needs_chromium, opened
from tests.support.evidence import (
    evidence,
    FINE,
    FULL,
    guided,
    guided_pictures,
    SCALES,
    TIMES,
    typed,
)
from tests.support.pages import Page


@pytest.fixture(scope="module")
def text():
    return render(typed(guided(), guided_pictures()))


@pytest.fixture(scope="module")
def read(text):
    return Page(text)


def scripts(text):
    """What the script is given, and the script."""
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
    return json.loads(data), script


def pixels(source):
    """Of a data: address."""
    assert source.startswith("data:image/png;base64,")
    return np.asarray(Image.open(BytesIO(b64decode(source.partition(",")[2]))))


def tiles(sheet, seeds, size):
    """The pictures on a sheet with gaps of one pixel."""
    columns = int(np.ceil(seeds**0.5))
    at = [divmod(k, columns) for k in range(seeds)]
    return [
        sheet[y * (size + 1) : y * (size + 1) + size, x * (size + 1) : x * (size + 1) + size]
        for y, x in at
    ]


# ---- the page


def test_it_is_written_whole_and_always_the_same(tmp_path, text):
    again = json.loads(json.dumps(guided()))
    path = write(typed(again, guided_pictures()), tmp_path / "run" / "slider.html")
    assert path == tmp_path / "run" / "slider.html"
    assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in path.parent.iterdir()] == ["slider.html"]
    assert path.stat().st_size < 300_000


def test_nothing_is_written_where_nothing_is_guided(tmp_path):
    alone = guided_pictures()
    alone |= {"guided": alone["guided"][:, :1], "guided_labels": alone["guided_labels"][:1]}
    empty = guided()
    empty["guided"]["rows"] = []
    for content, drawn in (
        (evidence(), guided_pictures()),
        (guided(), {}),
        (guided(), alone),
        (empty, guided_pictures()),
    ):
        assert write(typed(content, drawn), tmp_path / "slider.html") is None
    assert not list(tmp_path.iterdir())


def test_nothing_comes_from_elsewhere(text, read):
    for _, attrs in read.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            if value := attrs.get(name):
                assert value.startswith(("data:", "#")), value
        assert not [name for name in attrs if name.startswith("on")]
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert not re.findall(r"url\((?!#)", text) and not re.findall(r"fetch|XMLHttp|import\(", text)


def test_only_its_own_script_may_run(text, read):
    _, script = scripts(text)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    [policy] = [a["content"] for a in read.of("meta") if "http-equiv" in a]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_every_picture_is_there_to_the_bit(text):
    data, _ = scripts(text)
    drawn = guided_pictures()["guided"]
    assert [len(row) for row in data["sprites"]] == [5] * len(FINE)
    for s, row in enumerate(data["sprites"]):
        for way, source in enumerate(row):
            sheet = pixels(source)
            assert sheet.shape == (26, 35, 2)  # 10 of 8 x 8 in rows of 4; gaps are seen through
            for k, tile in enumerate(tiles(sheet, 10, 8)):
                assert (tile[..., 0] == drawn[s, way, k, ..., 0]).all() and (
                    tile[..., 1] == 255
                ).all()
            assert (
                (sheet[8] == 0).all() and (sheet[:, 8] == 0).all() and (sheet[18:, 18:] == 0).all()
            )


def test_colours_come_back():
    drawn = guided_pictures(seeds=3)
    colour = np.random.default_rng(0).integers(0, 256, (8, 5, 3, 9, 7, 3), dtype=np.uint8)
    data, _ = scripts(render(typed(guided(), drawn | {"guided": colour})))
    sheet = pixels(data["sprites"][7][4])
    assert sheet.shape == (19, 15, 4)
    assert (sheet[10:, :7, :3] == colour[7, 4, 2]).all() and (
        sheet[:9, 8:, :3] == colour[7, 4, 1]
    ).all()


def test_the_numbers_are_those_of_the_nearest_row(text):
    data, _ = scripts(text)
    assert data["scales"] == ["1", "1.15", "1.3", "1.5", "1.75", "2", "2.5", "3"]
    assert data["measured"] == ["1", "1.3", "2", "3"]
    # 1.15 and 2.5 lie in the middle: the lower one
    assert data["near"] == [0, 0, 1, 1, 2, 2, 2, 3]
    assert data["columns"] == ["calls", "distance", "times", "rmse"]
    four = data["numbers"][2][2]
    times = TIMES[4] * 1.1
    assert four[0] == ["4", ""]
    assert four[1] == [
        f"{0.03 * times:.4f}",
        f"{0.03 * times * 0.97:.4f} to {0.03 * times * 1.03:.4f}",
    ]
    assert four[2][0] == f"{times:.2f}" and four[3][0] == f"{0.03 * times:.4f}"
    assert data["numbers"][2][0][0] == [f"{2 * FULL}", ""] and data["numbers"][0][0][0] == [
        f"{FULL}",
        "",
    ]
    # guidance costs the teacher two calls a step at 1.15 too, whose numbers are those of scale 1
    made = [f"{FULL} network calls"] + [f"{2 * FULL} network calls"] * 7
    assert [row[0] for row in data["made"]] == made
    assert data["numbers"][2][0][2:] == [["the floor", ""], [DASH, ""]]


def test_a_way_that_was_not_measured_has_pictures_only():
    content = guided()
    content["guided"]["rows"] = [row for row in content["guided"]["rows"] if row["steps"] != 2]
    data, _ = scripts(render(typed(content, guided_pictures())))
    assert data["made"][0][3:] == ["", "1 network call"]
    assert data["numbers"][0][3] == [[DASH, ""]] * 4 and data["numbers"][0][4][0] == ["1", ""]


def test_it_can_be_read_without_its_script(text, read):
    data, _ = scripts(text)
    sources = {a["id"]: a for a in read.of("img")}
    at, way = data["scales"].index("2"), 2
    assert sources["student-picture"]["src"] == data["sprites"][at][way]
    assert sources["teacher-picture"]["src"] == data["sprites"][at][0]
    assert (
        sources["student-picture"]["alt"] == "10 samples of the student, 4 steps, guidance scale 2"
    )
    assert next(a for a in read.of("div") if a.get("id") == "sliders")["hidden"] is None
    assert "Without scripts nothing moves: these are the pictures at guidance scale 2." in read.text
    assert "Teacher, teacher" not in read.text and "Teacher, 64 steps" in read.text
    assert len(read.of("tbody")) == 1 + len(SCALES)
    for scale in SCALES:
        assert f"guidance scale {scale:g} teacher, 64 steps" in read.text


def test_sliders_have_names_and_what_they_stand_at(read):
    scale, steps = read.of("input")
    assert (scale["type"], scale["min"], scale["max"], scale["value"]) == ("range", "0", "7", "5")
    assert (steps["type"], steps["min"], steps["max"], steps["value"]) == ("range", "0", "3", "2")
    assert (scale["aria-valuetext"], steps["aria-valuetext"]) == ("2", "4 steps")
    assert [a["for"] for a in read.of("label")] == [a["id"] for a in (scale, steps)]
    assert all(a["alt"] for a in read.of("img"))
    ids = read.ids()
    assert len(ids) == len(set(ids))


def test_many_scales_are_written_thinner():
    many = np.linspace(1, 3, 21).round(2)
    drawn = guided_pictures()
    drawn |= {"guided": drawn["guided"][[0] * 21], "guided_scales": many}
    stops = slider._scale_stops(shown(drawn), guided_view(typed(guided()).guided))
    assert [text for text, strong in stops if text] == ["1", "1.3", "2", "3"]
    assert [text for text, strong in stops if strong] == ["1", "1.3", "2", "3"] and len(stops) == 21


def test_one_student_and_scales_that_are_not_in_the_table():
    drawn = guided_pictures()
    drawn |= {
        "guided": drawn["guided"][1:2, :2],
        "guided_scales": np.array([1.15]),
        "guided_labels": drawn["guided_labels"][:2],
    }
    text = render(typed(guided(), drawn))
    data, _ = scripts(text)
    assert (data["scales"], data["near"]) == (["1.15"], [0])
    assert "numbers are of the nearest scale that was measured" in Page(text).text
    assert 'id="between">' in text


def test_what_comes_from_data_is_escaped():
    content, drawn = guided(), guided_pictures()
    bad = "</script><script>alert(1)</script>"
    content["run"]["folder"] = bad
    content["guided"]["rows"][1]["name"] = bad
    drawn["guided_labels"] = np.array(["teacher, 64 steps", bad, "<b>", "'", '"'])
    text = render(typed(content, drawn))
    assert text.count("<script") == 2 and "alert(1)</" not in text
    assert scripts(text)[0]["ways"][1] == bad


# ---- too large, and wrong


def test_large_pictures_are_reduced_and_it_is_said():
    rng = np.random.default_rng(0)
    drawn = {
        "guided": rng.integers(0, 256, (4, 3, 2, 512, 512, 3), dtype=np.uint8),
        "guided_scales": np.array(SCALES),
        "guided_labels": np.array(["teacher, 64 steps", "8 steps", "4 steps"]),
    }
    text = render(typed(guided(), drawn))
    assert len(text.encode()) < slider.LIMIT and "reduced from 512 to 256 pixels across" in text
    assert pixels(scripts(text)[0]["sprites"][0][0]).shape == (256, 2 * 256 + 16, 4)


def test_a_page_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(slider, "BUDGET", 20_000)
    with pytest.raises(ConfigError, match="fewer seeds"):
        write(typed(guided(), guided_pictures()), tmp_path / "slider.html")
    monkeypatch.undo()
    monkeypatch.setattr(slider, "LIMIT", 30_000)
    with pytest.raises(ConfigError, match="under 30,000"):
        write(typed(guided(), guided_pictures()), tmp_path / "slider.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"guided": np.zeros((8, 5, 10, 8, 8), np.uint8)}, "got uint8"),
        ({"guided": np.zeros((8, 5, 10, 8, 8, 2), np.uint8)}, "must be uint8"),
        ({"guided": np.zeros((8, 5, 10, 8, 8, 1), np.float32)}, "got float32"),
        ({"guided_scales": np.array([1.0, 2.0])}, "8 scales of 5 setups, but 2"),
        ({"guided_labels": np.array(["a"] * 4)}, "5 'guided_scales'|8 'guided_scales' and 4"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        render(typed(guided(), guided_pictures() | change))


def test_what_is_not_finite_is_refused_by_name(tmp_path):
    report = typed(guided(), guided_pictures())
    rows = list(report.guided.rows)
    rows[3] = replace(rows[3], distance=replace(rows[3].distance, high=float("nan")))
    report = replace(report, guided=replace(report.guided, rows=tuple(rows)))
    with pytest.raises(DataError, match=r"guided\.rows\[3\]\.distance\.high"):
        write(report, tmp_path / "slider.html")


# ---- the report


def test_both_pages_are_drawn_from_the_files_of_a_report(tmp_path, text):
    verdict = {"headline": "It was", "verdict": "As it was."}
    storage.write_json(tmp_path / "report.json", guided() | verdict)
    np.savez(tmp_path / "report.npz", **guided_pictures())
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "slider.html").read_text(encoding="utf-8") == text
    assert 'href="slider.html"' in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_needs_a_folder(tmp_path):
    storage.write_json(
        tmp_path / "report.json", guided() | {"headline": "It was", "verdict": "As it was."}
    )
    np.savez(tmp_path / "report.npz", **guided_pictures())
    with pytest.raises(ConfigError, match="out=FOLDER"):
        write_report(read_report(tmp_path))


def test_the_report_has_a_section_and_is_else_the_same(monkeypatch):
    monkeypatch.setattr(page, "bibtex", lambda report: "")  # which names the paper of guidance
    text, plain = (
        page.render(typed(guided() | {"headline": "x", "verdict": "x"}, guided_pictures())),
        page.render(typed(evidence() | {"headline": "x", "verdict": "x"}, guided_pictures())),
    )
    section = re.search(r'<section id="guided".*?</section>\n\n', text, re.S)[0]
    without = text.replace(section, "").replace('<li><a href="#guided">Guidance</a></li>', "")
    without = re.sub(r"\.group th .*\n", "", without)
    assert without == plain and "guided" not in plain and "slider" not in plain
    read = Page(section)
    assert [a["href"] for a in read.of("a") if "download" not in a] == ["slider.html"]
    assert read.text.count("the floor") >= len(SCALES)
    for value in (TIMES[1] * 1.15, TIMES[8] * 1.05):
        assert f"{value:.2f} {value * 0.97:.2f} to {value * 1.03:.2f}" in read.text
    assert "slider.html" not in page.render(typed(guided(), {}))


def test_the_curve_has_a_line_for_each_and_its_scales():
    read = Page(page.render(typed(guided(), guided_pictures())))
    assert "figure-tradeoff" in read.ids()
    labels = [
        a["aria-label"] for a in read.of("svg") if "against Inception score" in a["aria-label"]
    ]
    assert len(labels) == 2
    for name in ("teacher, 64 steps", "student, 8 steps", "student, 1 step"):
        assert f"{name}: " in labels[0]
    assert "teacher, 64 steps: 0.250 at 9.15 for scale 1, 0.280 at 9.22 for scale 1.3" in labels[0]


def test_the_curve_is_left_out_where_there_is_no_score():
    content = guided()
    for row in content["guided"]["rows"]:
        row["inception_score"] = None
    read = Page(page.render(typed(content, {})))
    assert "figure-tradeoff" not in read.ids() and "guided" in read.ids()
    assert "The curves in numbers" not in read.text and "None" not in read.text


# ---- a browser

HARNESS = """<iframe id=f src=slider.html width={width} height=900 style="border:0"></iframe><script>
onload = async () => {{ const d = f.contentDocument, get = id => d.getElementById(id), seen = [];
const state = () => seen.push([get("student-picture").alt, get("teacher-picture").naturalWidth,
    get("student-distance").firstChild.textContent.trim(), get("teacher-calls").textContent.trim(),
    get("between").hidden, get("near-text").textContent, get("scale").getAttribute("aria-valuetext")]);
const move = async (id, at) => {{ get(id).value = at;
    get(id).dispatchEvent(new Event("input", {{bubbles: true}}));
    await new Promise(done => setTimeout(done, 100)); state() }};
state(); await move("scale", 0); await move("steps", 3); await move("scale", 4);
const root = d.documentElement, inside = [get("sliders"), get("student-picture")].map(
    e => e.getBoundingClientRect().height > 20);
document.title = JSON.stringify([root.clientWidth, root.scrollWidth, inside, seen]) }}</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_moves_the_sliders(width, tmp_path, text):
    (tmp_path / "slider.html").write_text(text, encoding="utf-8")
    (tmp_path / "frame.html").write_text(HARNESS.format(width=width))
    dom = opened(tmp_path / "frame.html", tmp_path / "profile")
    title = re.search("<title>(.*)</title>", dom)[1]
    inner, wide, inside, shown = json.loads(title)
    assert wide <= inner <= width and inside == [True, True]
    name = "10 samples of the student, {}, guidance scale {}"
    assert [state[0] for state in shown] == [
        name.format("4 steps", "2"),
        name.format("4 steps", "1"),
        name.format("8 steps", "1"),
        name.format("8 steps", "1.75"),
    ]
    assert all(state[1] == 35 for state in shown)
    far = [0.03 * 1.45 * 1.1, 0.06 * 1.45 * 1.05, 0.06 * 1.18 * 1.05, 0.03 * 1.18 * 1.1]
    assert [float(state[2]) for state in shown] == pytest.approx(far, abs=6e-5)
    assert [state[3] for state in shown] == ["128", "64", "64", "128"]
    assert [state[4] for state in shown] == [True, True, True, False]
    assert [state[5] for state in shown] == ["2", "1", "1", "2"]
    assert [state[6] for state in shown] == ["2", "1", "1", "1.75"]
