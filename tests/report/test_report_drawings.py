"""What is drawn, point by point: calls to the right, distances upwards, intervals from low to high."""

from itertools import accumulate

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from halfstep.report.plots import svg
from halfstep.report.plots.axes import Series
from halfstep.report.plots.curves import quality, ReferenceLine
from halfstep.report.plots.figures import figures
from halfstep.report.plots.svg import INK
from tests.support.evidence import rows_of, typed
from tests.support.pages import different, spread

FOUND = different()
STUDENTS = rows_of(FOUND, "student")
[FULL] = rows_of(FOUND, "teacher")


def drawn(make):
    """What this draws: the axes of each drawing for a desk, and its words, by its name."""
    figures_by_name = {}

    def recorded(figure, name, kind, alt):
        if kind == "wide":
            figures_by_name[name.removesuffix("-wide")] = figure.axes, alt
        return svg.Markup("")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svg, "_inline", recorded)
        make()
    return figures_by_name


def axes_of(make):
    return {name: axes for name, (axes, _) in drawn(make).items()}


@pytest.fixture(scope="module")
def everything():
    return drawn(lambda: figures(typed(FOUND)))


@pytest.fixture(scope="module")
def axes(everything):
    return {name: axes for name, (axes, _) in everything.items()}


def curves(axis):
    """(x, y) of every line with more than two points or with a marker, by colour and marker."""
    lines = {}
    for line in axis.lines:
        key = to_hex(line.get_color()), line.get_marker()
        if line.get_marker() != "None":
            assert key not in lines
            lines[key] = list(zip(*map(np.ndarray.tolist, line.get_data()), strict=True))
    return lines


def bands(axis):
    """(x, low, high) of every band between curves, by colour."""
    bands_by_colour = {}
    for band in axis.collections:
        if isinstance(band, PolyCollection):
            points = np.unique(band.get_paths()[0].vertices, axis=0)
            ends = {x: points[points[:, 0] == x, 1] for x in points[:, 0]}
            colour = to_hex(band.get_facecolor()[0])
            bands_by_colour.setdefault(colour, []).append(
                [(x, min(y), max(y)) for x, y in ends.items()]
            )
    return bands_by_colour


def levels(axis):
    """Heights of the lines from side to side, by colour."""
    flat = [
        line
        for line in axis.lines
        if line.get_marker() == "None" and list(line.get_xdata()) == [0, 1]
    ]
    return {to_hex(line.get_color()): line.get_ydata()[0] for line in flat}


def floors(axis):
    """(low, high) of the bands from side to side, by colour."""
    return {
        to_hex(p.get_facecolor()): (p.get_y(), p.get_y() + p.get_height())
        for p in axis.patches
        if isinstance(p, Rectangle)
    }


def by_calls(rows, of):
    """(calls, value, low, high), fewest calls first."""
    return sorted((row["calls"], *spread(of(row))) for row in rows)


def frechet(row):
    return row["distances"]["frechet_distance"]


def band(axis, points):
    """(x, low, high) of (x, value, low, high), cut at the lower edge."""
    bottom, _ = axis.get_ylim()
    return [(x, max(low, bottom), high) for x, _, low, high in points]


def near(actual, expected):
    np.testing.assert_allclose(np.array(actual, float), np.array(expected, float), rtol=1e-12)


# ---- quality


def test_distance_against_calls(axes):
    [axis] = axes["quality"]
    students = by_calls(STUDENTS, frechet)
    near(curves(axis)[INK["student"], "o"], [p[:2] for p in students])
    near(bands(axis)[INK["student"]], [band(axis, students)])
    marks = {"ddim": ("ddim", "s"), "dpmpp-2m": ("solver", "^"), "heun": ("heun", "D")}
    for sampler, (colour, marker) in marks.items():
        rows = [
            row for row in FOUND["rows"] if (row["role"], row["sampler"]) == ("baseline", sampler)
        ]
        expected = by_calls(rows, frechet)
        near(curves(axis)[INK[colour], marker], [p[:2] for p in expected])
        near(bands(axis)[INK[colour]], [band(axis, expected)])
    assert len(curves(axis)) == len(bands(axis)) == 4


def test_the_teacher_and_the_floor_are_levels(axes):
    [axis] = axes["quality"]
    teacher = frechet(FULL)
    assert levels(axis) == {INK["teacher"]: teacher["value"], INK["muted"]: 0.5}
    near(floors(axis)[INK["teacher"]], (teacher["low"], teacher["high"]))
    assert set(floors(axis)) == {INK["teacher"]}  # the floor is given, without an interval


def test_axes_are_logarithmic_and_hold_all_of_it(axes):
    for name in ("quality", "fidelity", "sizes-multiply-adds", "sizes-seconds"):
        [axis] = axes[name]
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        high = max(
            end for axis_bands in bands(axis).values() for band in axis_bands for *_, end in band
        )
        bottom, top = axis.get_ylim()
        assert top == pytest.approx(1.2 * high)
        lowest = min(y for points in curves(axis).values() for _, y in points)
        assert bottom == pytest.approx(0.8 * min(lowest, *levels(axis).values(), 1e9))
        for points in curves(axis).values():
            assert all(axis.get_xlim()[0] < x < axis.get_xlim()[1] for x, _ in points)


def test_a_single_point_has_a_line_of_its_interval():
    series = [Series("one", [(4.0, 0.5, 0.4, 0.7)], "student")]
    level = ReferenceLine("level", 0.6, 0.55, 0.65, "teacher")
    [axis] = axes_of(lambda: quality(series, [level], title="title", alt="alt"))["quality"]
    [line] = [c for c in axis.collections if isinstance(c, LineCollection)]
    near(line.get_segments()[0], [(4, 0.4), (4, 0.7)])


def test_what_is_below_the_drawing_is_cut_at_its_edge():
    series = [Series("one", [(1.0, 0.5, -0.4, 0.7), (2.0, 0.8, 0.75, 0.9)], "student")]
    [axis] = axes_of(lambda: quality(series, [], title="title", alt="alt"))["quality"]
    near(bands(axis)[INK["student"]], [[(1, 0.4, 0.7), (2, 0.75, 0.9)]])


# ---- ratios


def test_ratios_line_by_line(axes):
    [axis] = axes["ratios"]
    decisions = {
        decision["steps"]: decision
        for decision in FOUND["run"]["gate"]["decisions"]
        if decision["samples"] > 2000
    }
    expected = [spread(decisions.get(row["steps"], row)["ratio"]) for row in STUDENTS]
    dots = [line.get_data() for line in axis.lines if line.get_marker() == "o"]
    near([(x[0], y[0]) for x, y in dots], [(value, k) for k, (value, _, _) in enumerate(expected)])
    spans = [
        line for line in axis.lines if list(line.get_ydata()) != [0, 1] and line.get_marker() != "o"
    ]
    spans += [
        line for line in axis.lines if list(line.get_ydata()) == [0, 1] and line.get_marker() != "o"
    ][2:]
    near([line.get_xdata() for line in spans], [(low, high) for _, low, high in expected])
    near([line.get_ydata() for line in spans], [(k, k) for k in range(len(expected))])
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["24 calls", "13 calls", "8 calls", "3 calls"]
    upright = {
        to_hex(line.get_color()): line.get_xdata()[0]
        for line in axis.lines
        if list(line.get_ydata()) == [0, 1]
    }
    assert upright == {INK["teacher"]: 1, INK["student"]: 1.1}
    [within] = axis.patches
    assert within.get_x() + within.get_width() == pytest.approx(
        1.1
    )  # all to the left of the tolerance
    top, bottom = axis.get_ylim()[::-1]
    assert top < bottom  # the most calls on top
    low, high = axis.get_xlim()
    assert low < min(x for w in expected for x in w) and max(x for w in expected for x in w) < high


# ---- sizes


@pytest.mark.parametrize("at", ["multiply-adds", "seconds"])
def test_quality_against_cost(axes, at):
    [axis] = axes[f"sizes-{at}"]

    def cost(row):
        seconds = row["cost"]["seconds_per_sample"]["64"]
        return row["cost"]["multiply_adds"] if at == "multiply-adds" else seconds

    looks = {
        "student": ("student", "o"),
        "ddim": ("ddim", "s"),
        "dpmpp-2m": ("solver", "^"),
        "heun": ("heun", "D"),
    }
    for key, look in looks.items():
        rows = [
            row
            for row in FOUND["rows"]
            if (
                row["role"]
                if key == "student"
                else row["role"] in ("teacher", "baseline") and row["sampler"]
            )
            == key
        ]
        expected = sorted((cost(row), *spread(frechet(row))) for row in rows)
        near(curves(axis)[INK[look[0]], look[1]], [p[:2] for p in expected])
        near(bands(axis)[INK[look[0]]], [band(axis, expected)])
    expected = sorted(
        (cost(row), frechet(row)["value"]) for row in FOUND["rows"] if row["role"] == "other"
    )
    assert expected in list(curves(axis).values())


def test_the_front_goes_down_to_the_right(axes):
    [axis] = axes["sizes-multiply-adds"]
    points = sorted((row["cost"]["multiply_adds"], frechet(row)["value"]) for row in FOUND["rows"])
    lowest = list(accumulate((y for _, y in points), min))
    expected = [(x, y) for (x, y), least in zip(points, lowest, strict=True) if y == least]
    [front] = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    near(np.transpose(front.get_data()), expected)
    assert len(expected) > 2
    [axis] = axes["sizes-seconds"]
    assert all(line.get_drawstyle() == "default" for line in axis.lines)


# ---- guidance, fidelity, training


def test_the_curves_of_guidance(axes):
    [axis] = axes["tradeoff"]
    rows = FOUND["guided"]["rows"]
    looks = {
        64: ("teacher", "o"),
        8: ("student", "s"),
        4: ("solver", "^"),
        2: ("other", "D"),
        1: ("ddim", "v"),
    }
    for steps, (colour, marker) in looks.items():
        scores = [
            (row["inception_score"], row["data_distance"]) for row in rows if row["steps"] == steps
        ]
        near(curves(axis)[INK[colour], marker], scores)
    assert axis.get_yscale() == "log" and axis.get_xscale() == "linear"
    labels = {tuple(text.xy): text.get_text() for text in axis.texts if not text.arrow_patch}
    assert len(labels) > 8
    for row in rows:
        at = row["inception_score"], row["data_distance"]
        assert labels.get(at, f"{row['guidance_scale']:g}") == f"{row['guidance_scale']:g}"


def test_errors_against_calls(axes):
    [axis] = axes["fidelity"]
    looks = {
        ("student", "o"): ("fidelity", "rmse"),
        ("solver", "s"): ("split", "grid"),
        ("ddim", "^"): ("split", "learning"),
    }
    assert set(curves(axis)) == {(INK[colour], marker) for colour, marker in looks}
    for (colour, marker), (group, key) in looks.items():
        expected = by_calls(STUDENTS, lambda row, group=group, key=key: row[group][key])
        near(curves(axis)[INK[colour], marker], [p[:2] for p in expected])
        near(bands(axis)[INK[colour]], [band(axis, expected)])


def test_stages_follow_each_other_in_training():
    lines = [
        {
            "stage": f"{steps:04d}-steps",
            "update": update,
            "loss": steps + update / 1000,
            "rate": steps / update,
        }
        for steps, last in ((8, 300), (4, 200), (2, 100))
        for update in range(100, last + 1, 100)
    ]
    upper, lower = axes_of(lambda: figures(typed(FOUND | {"training": lines})))["training"]
    losses = [line for line in upper.lines if to_hex(line.get_color()) == INK["student"]]
    near(losses[0].get_data(), [(1 / 6, 2 / 6, 3 / 6), (8.1, 8.2, 8.3)])
    near(losses[1].get_data(), [(4 / 6, 5 / 6), (4.1, 4.2)])
    near(losses[2].get_data(), [(11 / 12,), (2.1,)])  # one point, in the middle of its stage
    assert [line.get_marker() for line in losses] == ["None", "None", "o"]
    rates = [line for line in lower.lines if to_hex(line.get_color()) == INK["muted"]]
    near(rates[0].get_data(), [(1 / 6, 2 / 6, 3 / 6), (0.08, 0.04, 8 / 300)])
    near(rates[1].get_data(), [(4 / 6, 5 / 6), (0.04, 0.02)])
    edges = [line.get_xdata()[0] for line in upper.lines if to_hex(line.get_color()) == INK["rule"]]
    near(edges, [3 / 6, 5 / 6])
    for axis, expected in ((upper, ["8", "4", "2"]), (lower, ["300", "200", "100"])):
        labels = [(text.get_text(), text.xy[0]) for text in axis.texts]
        assert [text for text, _ in labels] == expected
        near([at for _, at in labels], [3 / 12, 8 / 12, 11 / 12])
    assert upper.get_xlim() == lower.get_xlim() == (0, 1)
    assert upper.get_yscale() == "log" and lower.get_yscale() == "linear"


def test_a_long_stage_is_drawn_by_means_and_ranges():
    lines = [{"stage": "a", "update": k, "loss": 1.0 + k % 4, "rate": 1e-3} for k in range(1, 641)]
    upper, _ = axes_of(lambda: figures(typed(FOUND | {"training": lines})))["training"]
    near(upper.lines[0].get_data(), [[k / 640 for k in range(4, 641, 4)], [2.5] * 160])
    near(bands(upper)[INK["student"]], [[(k / 640, 1, 4) for k in range(4, 641, 4)]])


def test_what_is_said_of_a_drawing_is_what_is_drawn(everything):
    alt_texts = {name: words for name, (_, words) in everything.items()}
    for row in STUDENTS:
        value = f"{frechet(row)['value']:.2f} at {row['calls']}"
        assert value in alt_texts["quality"], value
        assert f"{row['fidelity']['rmse']['value']:.2f} at {row['calls']}" in alt_texts["fidelity"]
        assert (
            f"{frechet(row)['value']:.2f} at {row['cost']['multiply_adds'] / 1e9:.2f} G"
            in alt_texts["sizes-multiply-adds"]
        )
        micro = row["cost"]["seconds_per_sample"]["64"] * 1e6
        assert f"{frechet(row)['value']:.2f} at {micro:.2f} µs" in alt_texts["sizes-seconds"]
    for row in FOUND["guided"]["rows"]:
        scale = f"{row['guidance_scale']:g}"
        point = f"{row['data_distance']:.2f} at {row['inception_score']:.2f} for scale {scale}"
        assert point in alt_texts["tradeoff"]
    ends = [line for line in FOUND["training"] if line["stage"] == "0008-steps"]
    assert f"0008-steps {ends[-1]['loss']:.2g}" in alt_texts["training"]
    assert "The tolerance is 1.10." in alt_texts["ratios"]
