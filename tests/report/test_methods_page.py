"""compare.html: the answer first, every number where it belongs; what is unusual is said."""

import re
from dataclasses import replace

import pytest

from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.report.methods_page import cost_lines, drift_lines, render, write_methods_page
from halfstep.report.words.methods import headline, sentence, target_score, walk
from tests.support.comparisons import comparison

TWO = {
    "a": {4: [0.10, 0.101, 0.099], 1: [0.20, 0.22, 0.18]},
    "b": {4: [0.15, 0.151, 0.149], 1: [0.21, 0.23, 0.19]},
}


def text(page):
    """The page's words."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.split("</style>")[1]))


def cells(page, name, group):
    """The cells of a method's row among those of a number of steps."""
    body = page.split(f">{group}</th></tr>")[1]
    row = next(row for row in body.split("<tr") if f">{name}<" in row.split("</th>")[0])
    return [
        text(f"</style>{cell}").split() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
    ]


def test_the_answer_comes_first():
    found = comparison(TWO)
    assert found.headline == "a has the lowest distance at 4 steps; cannot tell at 1 step"
    page = render(found, "out")
    assert page.index(found.headline) < page.index("Quality against steps")
    assert "33.3 % lower than that of b" in text(page)
    assert "Caution" not in page


def test_each_number_stands_under_its_head():
    found = comparison(TWO, target=0.2, images=True)
    page = render(found, "out")
    ratio, to_target, spread, error, teacher_error = cells(page, "b", "4 steps")
    assert ratio[0] == "1.500" and to_target[0] == "0.750"
    mean = found.mean("b", 4)
    assert ratio[1] == f"{mean.ratio.low:.3f}" and ratio[3] == f"{mean.ratio.high:.3f}"
    assert spread[:2] == ["0.007", "3"]
    assert error[0] == "0.0150" and teacher_error[0] == "0.0300"
    target = cells(page, "target", "the teacher itself")
    assert target[0][0] == "2.000" and target[1] == ["1"] and target[4][0] == "0.0400"
    assert cells(page, "teacher", "the teacher itself")[1] == ["0.500"]
    assert "learns DDIM in 16 steps" in text(page)


def test_the_best_is_coloured_where_it_is_better():
    page = render(comparison(TWO), "out")
    four, one = page.split(">4 steps</th></tr>")[1].split(">1 step</th></tr>")
    assert '<th scope="row" class="mine">a<' in four and 'class="mine">b' not in four
    assert 'class="mine"' not in one.split("the teacher itself")[0]


@pytest.mark.parametrize(
    "target, word", [(0.094, "flatters"), (0.12, "burdens"), (0.1005, ""), (0.1, "")]
)
def test_a_target_far_from_the_teacher_is_told(target, word):
    page = text(render(comparison(TWO, target=target), "out"))
    assert (word in page) if word else ("Caution" not in page)


def test_what_the_target_scores_is_a_sentence():
    other = comparison(TWO, target=0.2)
    full, target = other.teacher, other.target
    assert target_score(full, full) == "it is the teacher at full steps, so that its ratio is 1"
    words = target_score(target, full)
    assert words.startswith("its distance is 2.000 (") and words.endswith(
        f"times that of {walk(full)}"
    )
    assert words in text(render(other, "out"))


def test_one_seed_is_told():
    found = comparison({"a": {4: [0.1]}, "b": {4: [0.15]}})
    assert found.headline == "One seed cannot tell; a scored best at 4 steps"
    page = text(render(found, "out"))
    assert "add --seeds 3" in page and "is best" not in page
    assert "One seed of each method" in page and "Three seeds tell (--seeds 3)." in page
    assert "seeds differ by" not in page
    assert "Every seed" not in page


def test_costs_are_means_over_runs():
    [a, _] = cost_lines(comparison(TWO))
    assert (a.runs, a.updates, a.forwards, a.seconds) == (3, 100, 990, 7200)
    assert a.options == "start 16, updates 1 2"
    assert "99.0 %" in render(comparison(TWO), "out")


def test_what_all_runs_were_trained_with_is_one_sentence():
    found = comparison(TWO)
    alike = (
        "Each run was trained by adamw: 8 samples an update, learning rate 0.0003 "
        "(falls to 0 within each stage), no ema."
    )
    assert alike in text(render(found, "out"))
    options = {**found.training, "learning_rate_schedule": "constant", "ema": 0.999}
    options["weight_decay"] = 0.01
    others = text(render(replace(found, training=options), "out"))
    assert "learning rate 0.0003, weight decay 0.01, ema 0.999." in others
    assert "was trained by" not in text(render(replace(found, training=None, batch=None), "out"))


def test_runs_beside_have_their_own_optimiser():
    found = comparison(TWO)
    options = {"batch_size": 64, "optimiser": "muon", "learning_rate": [0.02, 1e-5], "ema": 0.0}
    beside = replace(found.methods[1], planned=None, options={"start": 16, **options})
    found = replace(found, methods=(found.methods[0], beside))
    line = cost_lines(found)[1].options
    assert line == "start 16, batch size 64, optimiser muon, learning rate 0.02 1e-05, ema 0"
    assert "runs beside have theirs among their options." in text(render(found, "out"))


def test_drift_is_the_mean_and_any_alarm():
    lines = drift_lines(comparison(TWO, alarm="contrast +3 %, outside ±3 %"))
    assert [(line.method, line.steps) for line in lines] == [("a", 4), ("b", 4), ("a", 1), ("b", 1)]
    [(change, alarm)] = lines[0].changes
    assert change == pytest.approx(0.03) and alarm
    assert "4 alarms" in text(render(comparison(TWO, alarm="contrast"), "out"))
    assert "No alarm" in text(render(comparison(TWO), "out"))


def test_a_method_without_a_student_has_no_row():
    found = comparison({"a": {4: [0.1, 0.101]}, "b": {4: [0.15, 0.151], 2: [0.2, 0.21]}})
    assert found.mean("a", 2) is None
    assert found.sentences[1] == "At 2 steps only b has a student."


def test_a_better_share_says_what_is_lower():
    [verdict, _] = comparison(TWO).verdicts
    difference = replace(verdict, difference=Interval(1.25, 1.0, 2.0))
    assert "20.0 % lower than that of b (0.0 % to 50.0 %)" in sentence(difference)


def test_nothing_to_compare():
    found = comparison({"a": {4: [0.1, 0.11]}})
    assert "Only a was measured" in found.headline
    assert "Nothing" in headline(replace(found, verdicts=(), methods=()))


def test_the_page_has_no_script_and_names_that_are_text(tmp_path):
    found = comparison({"<b>x</b>": TWO["a"], "b": TWO["b"]}, images=True)
    path = write_methods_page(found, tmp_path / "compare.html")
    page = path.read_text()
    assert "<script" not in page and "<b>x</b>" not in page and "&lt;b&gt;x" in page
    assert page.count("<img") == 12
    assert write_methods_page(found, tmp_path / "again.html").read_bytes() == path.read_bytes()
