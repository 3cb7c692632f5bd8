"""The head of a page: at most 12 words for every kind of report, four tiles, pictures on the first screen."""

import re

import pytest

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.report_data import EncoderRow
from halfstep.report.page import render
from halfstep.report.words.headline import encoder_headline, MOST_WORDS
from halfstep.report.words.numbers import DASH
from halfstep.report.words.tiles import tiles
from tests.support.browser import needs_chromium, opened
from tests.support.evidence import (
    encoder_report,
    evidence,
    guided,
    guided_pictures,
    measured,
    pictures,
    rows_of,
    typed,
)
from tests.support.verdicts import KEPT, with_rows

ALL = ("c8", "c4", "c2", "c1")
SURE = dict.fromkeys(ALL, (1.0, 0.01))
LOST = dict.fromkeys(ALL, (2.0, 0.01))


def without_gate(content):
    content["run"]["gate"] = None
    return content


def poor():
    content = with_rows(**SURE)
    content["measure"]["floor"] = 32.0
    content["rows"][0]["distances"]["frechet_distance"] = measured(519.0, 0.01)
    return content


def alone():
    content = evidence()
    content["rows"] = content["rows"][:1]
    return content


def unmeasured():
    content = evidence() | {"guided": None}
    content["run"]["gate"] = None
    for row in content["rows"]:
        row["ratio"] = None
    return content


def guided_gate(tolerance):
    content = guided()
    about = {"guidance_scales": [1.0, 3.0]}
    content["run"]["gate"] |= {"tolerance": tolerance, "about": about, "decisions": []}
    return content


KINDS = {
    "kept": (evidence, "4 steps keep the quality of 64; 2 steps do not"),
    "all kept": (lambda: with_rows(**SURE), "1 step keeps the quality of 64"),
    "one lost": (
        lambda: with_rows(**SURE | {"c1": (2.0, 0.01)}),
        "2 steps keep the quality of 64; 1 step does not",
    ),
    "next undecided": (
        lambda: with_rows(**KEPT | {"c2": (1.11, 0.03)}),
        "4 steps keep the quality of 64; 2 steps are undecided",
    ),
    "undecided": (
        lambda: with_rows(**LOST | {"c8": (1.09, 0.04)}),
        "2,000 samples are too few to tell whether 8 steps suffice",
    ),
    "nothing kept": (lambda: with_rows(**LOST), "No student keeps the quality of 64 steps"),
    "no tolerance": (
        lambda: without_gate(with_rows(**KEPT)),
        "8 steps: 1.02 times the teacher's distance; no tolerance was set",
    ),
    "no tolerance, a tie": (
        lambda: without_gate(with_rows(**KEPT | {"c4": (1.02, 0.02), "c2": (1.02, 0.02)})),
        "8, 4 and 2 steps: 1.02 times the teacher's distance",
    ),
    "only a teacher": (alone, "Only the teacher was measured; the run has no student"),
    "nothing measured": (unmeasured, "Nothing is decided: no ratio to the teacher was measured"),
    "poor teacher": (poor, "The teacher is poor: 16 times the distance of 2,000 perfect samples"),
    "guided": (lambda: guided_gate(2.0), "4 steps keep the quality of 64; 2 steps do not"),
    "guided, no tolerance": (
        lambda: without_gate(guided()),
        "8 steps: at most 1.36 times the guided teacher's distance from itself",
    ),
    "encoder": (
        lambda: encoder_report() | {"headline": ""},
        "Encoded in 3 steps, images come back within 0.10",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_headline_of_every_kind_of_report(kind):
    make, text = KINDS[kind]
    report = typed(make())
    assert report.headline == text and len(text.split()) <= MOST_WORDS == 12
    assert f'<h1 id="verdict">{text}</h1>'.replace(
        "'", "\N{RIGHT SINGLE QUOTATION MARK}"
    ) in render(report)
    assert len(tiles(report)) == 4


def test_of_encoders_the_fewest_steps_count_and_the_teacher_without_any():
    def row(role, steps, error):
        return EncoderRow(role, role, steps, Interval(error, error, error), None)

    rows = [row("teacher", 64, 0.011), row("student", 8, 0.02), row("student", 4, 0.027)]
    assert encoder_headline(rows) == "Encoded in 4 steps, images come back within 0.027"
    text = encoder_headline(rows[:1])
    assert text == "Encoded in the teacher's 64 steps, images come back within 0.011"
    assert len(text.split()) <= MOST_WORDS


# ---- tiles


def shown(content):
    return [(tile.name, tile.value, tile.under) for tile in tiles(typed(content))]


def test_the_tiles_are_those_of_the_student_that_is_kept():
    assert shown(evidence()) == [
        ("steps kept", "4", "of the teacher's 64"),
        ("times the teacher's distance", "1.04", "1.02 to 1.06 at 4 steps, tolerance 1.10"),
        ("times faster", "16", "at 4 steps, 1.08 ms a sample"),
        ("training", "2.36 min", "1,700 updates, 1.09 M forwards"),
    ]


def test_tiles_say_why_nothing_is_kept():
    assert shown(with_rows(**LOST))[0] == ("steps kept", "none", "of the teacher's 64")
    assert shown(poor())[0][1:] == (DASH, "the teacher is poor")
    undecided = with_rows(**LOST | {"c8": (1.09, 0.04)})
    assert shown(undecided)[0][1:] == ("?", "too few samples to tell")
    assert shown(undecided)[1][1].startswith("1.09")  # of the best ratio, as none is kept
    assert shown(without_gate(with_rows(**KEPT)))[0][1:] == (DASH, "no tolerance was set")
    assert [value for _, value, _ in shown(alone())[:3]] == [DASH] * 3


def test_without_timings_calls_are_compared_and_the_ratio_of_the_guided_teacher_is_named():
    content = guided_gate(2.0)
    for row in content["rows"]:
        row["cost"] = None
    content["run"]["cost"] = None
    ratio, faster, training = shown(content)[1:]
    assert ratio == (
        "times the guided teacher's distance", "1.67", "1.62 to 1.72 at 4 steps, tolerance 2.00",
    )  # fmt: skip
    assert faster == ("times fewer network calls", "16", "4 of 64; time was not measured")
    assert training[1:] == (DASH, "not recorded")


def test_times_faster_are_those_of_the_largest_batch_of_both():
    content = evidence()
    [four] = [row for row in rows_of(content, "student") if row["calls"] == 4]
    four["cost"]["seconds_per_sample"] = {"1": 1.0, "64": 0.001}
    content["rows"][0]["cost"]["seconds_per_sample"] = {"1": 1.0, "64": 0.02}
    assert shown(content)[2] == ("times faster", "20", "at 4 steps, 1.00 ms a sample")


# ---- the first screen

SCREENS = {1280: 800, 390: 844}
CONTENT = {
    "plain": lambda: (evidence(), pictures()),
    "guided": lambda: (guided(), guided_pictures()),
    "poor": lambda: (poor(), pictures()),
    "encoder": lambda: (
        encoder_report() | {"headline": ""},
        {name: array for name, array in pictures().items() if name.startswith("grid")},
    ),
}


@needs_chromium
@pytest.mark.parametrize("kind", CONTENT)
def test_headline_tiles_and_pictures_are_on_the_first_screen(kind, tmp_path):
    content, arrays = CONTENT[kind]()
    (tmp_path / "report.html").write_text(render(typed(content, arrays)), encoding="utf-8")
    frames = "".join(
        f'<iframe class=f src=report.html width={width} height={height} style="border:0"></iframe>'
        for width, height in SCREENS.items()
    )
    (tmp_path / "frames.html").write_text(
        f"""{frames}<script>
        onload = () => {{ document.title = [...document.querySelectorAll(".f")].map(f => {{
            const d = f.contentDocument, box = q => [...d.querySelectorAll(q)].map(
                e => e.getBoundingClientRect());
            const [h1] = box("h1"), tiles = box(".tiles > div"), images = box("#samples img");
            const [sentence] = box(".sentence");
            return [h1.top, Math.max(...tiles.map(b => b.bottom)), Math.min(...images.map(b => b.top)),
                Math.max(...images.map(b => b.bottom)), Math.max(...images.map(b => b.right)),
                Math.min(...images.map(b => b.width)), sentence.top, tiles.length].map(
                    Math.round).join(" ") }}).join(";") }}</script>"""
    )
    dom = opened(tmp_path / "frames.html", tmp_path / "profile")
    screens = re.search("<title>(.*)</title>", dom)[1].split(";")
    for (width, height), screen in zip(SCREENS.items(), screens, strict=True):
        h1, tiles_end, first, last, right, size, sentence, count = map(int, screen.split())
        assert count == 4 and size >= 20
        assert 0 < h1 < tiles_end <= first < last <= height and right <= width
        assert last <= sentence
