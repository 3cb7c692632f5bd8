"""Labels of plots: at the ends of the lines, beside the stages, none over another."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from halfstep.evaluation.report_data import Update
from halfstep.report.plots.axes import Series
from halfstep.report.plots.curves import quality, ReferenceLine
from halfstep.report.plots.labels import lines_of, rows_of_labels, spread
from halfstep.report.plots.training import shares, short_name, stage_spans, training


def test_labels_with_room_stay_where_they_belong():
    assert spread([30.0, 10.0, 50.0], [10, 10, 10]) == [30, 10, 50]
    assert spread([], []) == [] and spread([7.0], [100]) == [7]


def test_labels_that_collide_share_the_middle_of_their_wishes():
    assert spread([20.0, 20.0], [10, 10]) == [15, 25]
    assert spread([24.0, 20.0], [10, 10]) == [27, 17]
    # a block of three: sizes 10, 20, 10 around wishes 0, 0, 0
    assert spread([0.0, 0.0, 0.0], [10, 20, 10]) == pytest.approx([-15, 0, 15])
    # the block of the first two grows into the third
    assert spread([0.0, 1.0, 11.0], [10, 10, 10]) == pytest.approx([-6, 4, 14])


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_nearest_of_all_that_do_not_overlap(seed):
    """Against the quadratic programme, solved by scipy."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    wanted, sizes = rng.uniform(0, 60, 6).tolist(), rng.uniform(5, 25, 6).tolist()
    places = spread(wanted, sizes)
    order = np.argsort(wanted)
    gaps = [
        {"type": "ineq", "fun": lambda y, a=a, b=b: y[b] - y[a] - (sizes[a] + sizes[b]) / 2}
        for a, b in pairwise(order)
    ]
    best = minimize(lambda y: np.sum((y - wanted) ** 2), wanted, constraints=gaps, tol=1e-12)
    np.testing.assert_allclose(places, best.x, atol=2e-4)


def test_rows_keep_labels_apart():
    assert rows_of_labels([(0, 10), (16, 10), (32, 10)]) == [0, 0, 0]
    assert rows_of_labels([(0, 10), (15, 10), (32, 10)]) == [0, 1, 0]
    assert rows_of_labels([(0, 10), (0, 10), (0, 10), (16, 4)]) == [0, 1, 2, 0]
    assert rows_of_labels([]) == []


def test_stages_have_their_share_and_short_ones_half_of_an_equal_one():
    assert shares([250, 300, 450]) == pytest.approx([0.25, 0.3, 0.45])
    assert shares([1]) == [1] and shares([3, 3]) == [0.5, 0.5]
    assert shares([1, 99]) == pytest.approx([0.25, 0.75])
    # giving the first two a sixth leaves the third too little of its own share to reach one
    assert shares([1, 1, 998]) == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    assert shares([1, 100, 100, 2, 100]) == pytest.approx([0.1, 0.8 / 3, 0.8 / 3, 0.1, 0.8 / 3])
    # 12 has enough of all 100, but not of what the first leaves
    assert shares([1, 13, 86]) == pytest.approx([1 / 6, 1 / 6, 4 / 6])


def test_a_stage_lies_behind_the_one_before_it():
    lines = [Update("0004-steps", k, 1.0, 1e-3) for k in (50, 100)]
    lines += [Update("0002-steps", 1, 1.0, 1e-3), Update("0001-steps", 299, 1.0, 1e-3)]
    four, two, one = stage_spans(lines)
    assert (four.start, two.start, two.updates) == (0, four.width, 1)
    assert one.start == pytest.approx(four.width + two.width)
    assert four.x == pytest.approx([four.width / 2, four.width])
    assert two.x == pytest.approx([two.start + 1 / 12]) and one.x == [one.middle]
    assert [short_name(name) for name in ("0064-steps", "guided", "0064-stepsX")] == [
        "64", "guided", "0064-stepsX",
    ]  # fmt: skip


STAGES = {
    "one of one update": [("0001-steps", 1)],
    "very different": [("guided", 5000), ("0032-steps", 1), ("0016-steps", 100_000), ("0001-steps", 2)],
    "many": [(f"{2**k:04d}-steps", 100) for k in range(10, -1, -1)],
    "long names": [("a-stage-with-a-long-name", 1), ("another-one", 1), ("reparameterise", 90)],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["wide", "narrow"])
@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
def test_every_stage_is_seen_and_every_label_is_readable(stages, kind, monkeypatch):
    lines = [Update(name, k, 0.1, 1e-3) for name, n in stages for k in sorted({max(1, n // 2), n})]
    figure = drawn_as(kind, monkeypatch, lambda: training(lines, alt="alt"))
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.texts] == [short_name(name) for name, _ in stages]
    assert [text.get_text() for text in lower.texts] == [f"{n:,}" for _, n in stages]
    losses = [
        line for line in upper.lines if len(line.get_xdata()) != 2 or line.get_marker() == "o"
    ]
    for line in losses:
        assert len(line.get_xdata()) > 1 or line.get_marker() == "o"
    unreadable(figure, [*upper.texts, *lower.texts, lower.xaxis.label, upper.yaxis.label])


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_lines_are_labelled_at_their_ends(kind, monkeypatch):
    series = [
        Series(name, [(1.0, 3.0, 2.5, 3.5), (8.0, y, y, y)], "student")
        for name, y in (("student", 0.2), ("teacher, DPM-Solver++(2M)", 0.201), ("teacher", 2.0))
    ]
    level = ReferenceLine("sampling floor", 0.199, 0.199, 0.199, "muted", ":")
    figure = drawn_as(kind, monkeypatch, lambda: quality(series, [level], title="t", alt="alt"))
    [axis] = figure.axes
    texts = {text.get_text().replace("\n", " "): text for text in axis.texts}
    assert list(texts) == [
        "● student", "● teacher, DPM-Solver++(2M)", "● teacher", "sampling floor",
    ]  # fmt: skip
    assert texts["● student"].xy == (8, 0.2) and texts["● teacher"].xy == (8, 2.0)
    assert texts["sampling floor"].xy == (axis.get_xlim()[1], 0.199)
    unreadable(figure, list(texts.values()))
    boxes = {name: Text.get_window_extent(text) for name, text in texts.items()}
    middle = {name: text.xyann[1] for name, text in texts.items()}
    assert middle["sampling floor"] < middle["● student"] < middle["● teacher, DPM-Solver++(2M)"]
    assert middle["● teacher"] == pytest.approx(
        np.log10(2.0 / 0.1592) / np.log10(4.2 / 0.1592), abs=1e-3
    )
    assert all(box.x1 <= figure.bbox.x1 for box in boxes.values())


def test_only_a_word_that_is_too_long_is_broken():
    assert lines_of("target, DPM-Solver++(2M) in 16", 17) == [
        "target,",
        "DPM-Solver++(2M)",
        "in 16",
    ]
    assert lines_of("● a-file-of-many-words now", 10) == ["● a-file-", "of-many-", "words now"]
    assert lines_of("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert lines_of("● " + "x" * 12, 10) == ["●", "x" * 10, "xx"]
    assert lines_of("ab_cd", 5) == ["ab_cd"] and lines_of("", 5) == [""]


@pytest.mark.parametrize("kind", ["wide", "narrow"])
def test_long_names_leave_room_for_the_lines(kind, monkeypatch):
    names = (
        "progressive-64-first-8-heun-long-name",
        "multistep-consistency-start-64-eta-student",
        "cached_walks_from_dpmpp_2m_with_noises_200k",
    )
    series = [
        Series(name, [(1.0, 3.0, 2.5, 3.5), (8.0, 1 + k / 100, 1.0, 1.1)], "student")
        for k, name in enumerate(names)
    ]
    figure = drawn_as(kind, monkeypatch, lambda: quality(series, [], title="t", alt="alt"))
    [axis] = figure.axes
    assert axis.get_window_extent().width > 0.5 * figure.bbox.width
    unreadable(figure, list(axis.texts))
    assert [text.get_text().replace("\n", "") for text in axis.texts] == [f"● {n}" for n in names]


def drawn_as(kind, monkeypatch, make):
    """The wide or the narrow figure that this draws, laid out."""
    from halfstep.report.plots import svg

    figures = {}
    inline = svg._inline

    def recorded(figure: Figure, name, drawn_kind, alt):
        figures[drawn_kind] = figure
        return inline(figure, name, drawn_kind, alt)

    monkeypatch.setattr(svg, "_inline", recorded)
    make()
    return figures[kind]


def unreadable(figure, texts):
    """Assert that no text lies over another or outside of the figure (an annotation's line may)."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, (one, other)
    for name, box in boxes:
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1, name
        assert box.y1 <= figure.bbox.y1 + 1, name
