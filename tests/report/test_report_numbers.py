"""Every number of a page stands under its header: pages of numbers that are all different, read back."""

import re
from base64 import b64decode
from html import unescape
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from halfstep.report import page, page_tables
from halfstep.report.page import render
from halfstep.report.plots.sizes import sizes
from halfstep.report.slider import render as sliders
from halfstep.report.words.numbers import DASH, MINUS
from tests.support.evidence import evidence, guided_pictures, pictures, rows_of, typed
from tests.support.pages import different, says, spread, tables

FOUND = different()
STUDENTS = rows_of(FOUND, "student")
[FULL] = rows_of(FOUND, "teacher")
BASELINES, VARIANTS = rows_of(FOUND, "baseline"), rows_of(FOUND, "compressed")
ORDER = [FULL, *BASELINES, *STUDENTS, *VARIANTS]
SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM-Solver++(2M)", "heun": "Heun"}


@pytest.fixture(scope="module")
def read():
    """Without drawings, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "figures", lambda evidence: {})
        return tables(render(typed(FOUND)))


def under(row):
    """As the rows of all measures begin: the name, and below it the sampler."""
    return f"{row['name']} {SOLVERS[row['sampler']]}"


def check(table, header, expected):
    """The column has these numbers, row by row and in this order."""
    assert list(table[header]) == list(expected)
    for name, cell in table[header].items():
        assert says(cell, *expected[name]), (header, name, cell, expected[name])


@pytest.mark.parametrize(
    ("cell", "right", "wrong"),
    [
        ("1.23 1.02 to 1.44", (1.2349, 1.0151, 1.44), (1.23, 1.44, 1.02)),
        (f"{MINUS}1,234.5", (-1234.46,), (1234.5,)),
        ("+9.0 %", (0.09,), (9.0,)),
        ("8.40 ms", (0.0084,), (8.4,)),
        ("270 µs", (2.7e-4,), (0.27,)),
        ("2.36 min", (141.7,), (2.36,)),
        ("58.0 MB", (58e6,), (58e3,)),
        ("331 k", (331_024,), (331,)),
        ("0.41 Heun, 7 network calls", (0.41, 7), (7, 0.41)),
        (DASH, (), (0,)),
    ],
)
def test_a_cell_is_read_as_its_numbers(cell, right, wrong):
    assert says(cell, *right) and not says(cell, *wrong)


def test_no_two_measured_numbers_are_the_same():
    intervals = [
        row["distances"][name]
        for row in ORDER
        for name in row["distances"]
        if row["distances"][name]
    ]
    numbers = [x for interval in intervals for x in interval.values()]
    assert len(set(numbers)) == len(numbers) == 3 * 5 * len(ORDER)
    assert len(ORDER) == 1 + 11 + 4 + 2


# ---- quality


def best(calls):
    """The baseline of the lowest distance in not more calls."""
    fitting = [row for row in BASELINES if row["calls"] <= calls]
    return min(fitting, key=lambda r: r["distances"]["frechet_distance"]["value"], default=None)


def test_students_beside_the_best_baseline(read):
    table = read["Teacher, best baseline and student at equal network calls"]
    assert table.head == [
        "calls", "student", "best baseline", "ratio to teacher", "difference",
        "ratio, floor taken from both", "good enough",
        "better than the baseline",
    ]  # fmt: skip
    distances = {f"{row['calls']}": row["distances"]["frechet_distance"] for row in STUDENTS}
    check(table, "student", {calls: spread(one) for calls, one in distances.items()})
    teacher_distance = FULL["distances"]["frechet_distance"]["value"]
    check(
        table, "difference", {c: (one["value"] - teacher_distance,) for c, one in distances.items()}
    )
    less = {c: ((one["value"] - 0.5) / (teacher_distance - 0.5),) for c, one in distances.items()}
    check(table, "ratio, floor taken from both", less)
    looks = {
        one["steps"]: one for one in FOUND["run"]["gate"]["decisions"] if one["samples"] > 2000
    }
    assert set(looks) == {8, 4, 2}
    # the gate's, where it saw more samples than the report
    ratios = {f"{r['calls']}": spread(looks.get(r["steps"], r)["ratio"]) for r in STUDENTS}
    check(table, "ratio to teacher", ratios)
    for row in STUDENTS:
        other, calls = best(row["calls"]), f"{row['calls']}"
        if other is None:
            cells = (table["best baseline"][calls], table["better than the baseline"][calls])
            assert cells == (DASH, "no baseline")
            continue
        rivals = other["distances"]["frechet_distance"]["value"]
        number, solver = table["best baseline"][calls].split(" ", 1)
        assert says(number, rivals) and solver.startswith(SOLVERS[other["sampler"]])
        assert (f", {other['calls']} network call" in solver) == (other["calls"] != row["calls"])
        better, numbers = re.fullmatch(
            r"(yes|no|cannot tell) (.*)", table["better than the baseline"][calls]
        ).groups()
        assert says(numbers, *spread(row["baseline"]["ratio"]))
        assert better == {8: "yes", 4: "cannot tell", 2: "no"}[row["steps"]]
    assert list(table["good enough"].values()) == [
        "yes" if high <= 1.1 else "no" if low > 1.1 else "cannot tell"
        for low, high in (one[1:] for one in ratios.values())
    ]


def test_every_way_of_sampling_and_every_measure(read):
    table = read["Every way of sampling, every measure"]
    check(table, "steps", {under(row): (row["steps"],) for row in ORDER})
    check(table, "calls", {under(row): (row["calls"],) for row in ORDER})
    labels = {
        "frechet_distance": "Fréchet distance",
        "kernel_distance": "kernel distance",
        "inception_score": "Inception score",
        "precision": "precision",
        "recall": "recall",
    }
    for key, label in labels.items():
        check(table, label, {under(row): spread(row["distances"][key]) for row in ORDER})
    check(table, "ratio to teacher", {under(row): spread(row["ratio"]) for row in ORDER})
    assert len(table.head) == 3 + len(labels) + 1


def test_the_gate(read):
    table, tried = read["What the gate measured"], FOUND["run"]["gate"]["decisions"]
    name = {
        decision["steps"]: f"{decision['steps']} steps {decision['stage']}" for decision in tried
    }
    check(
        table,
        "ratio to teacher",
        {name[decision["steps"]]: spread(decision["ratio"]) for decision in tried},
    )
    check(table, "samples", {name[decision["steps"]]: (decision["samples"],) for decision in tried})
    assert list(table["decision"].values()) == ["passed", "passed", "passed", "broken"]
    assert table.head[0] == "halved to"


def test_sizes(read):
    table = read["Size and steps in numbers"]
    rows = sorted(FOUND["rows"], key=lambda row: (row["cost"]["multiply_adds"], row["name"]))
    networks = {"student": "students of this run", "other": "other"}

    def name(row):
        network = networks.get(row["role"], row["name"])
        if row["role"] in ("teacher", "baseline"):
            network = f"teacher, {SOLVERS[row['sampler']]}"
        return f"{row['name']} {network}"

    check(table, "parameters", {name(row): (row["cost"]["parameters"],) for row in rows})
    check(table, "calls", {name(row): (row["calls"],) for row in rows})
    check(
        table,
        "multiply-adds a sample",
        {name(row): (row["cost"]["multiply_adds"],) for row in rows},
    )
    seconds = {name(row): (row["cost"]["seconds_per_sample"]["64"],) for row in rows}
    check(table, "time a sample", seconds)
    distances = {name(row): row["distances"]["frechet_distance"] for row in rows}
    check(table, "Fréchet distance", {key: spread(one) for key, one in distances.items()})
    lowest, front = float("inf"), dict[str, str]()
    for key, one in distances.items():  # the cheapest first
        front[key], lowest = "yes" * (one["value"] < lowest), min(lowest, one["value"])
    assert table["on the front"] == front and len(table.head) == 7


def test_fidelity(read):
    table = read["Fidelity in numbers"]
    columns = {
        "error (rms)": ("fidelity", "rmse"),
        "PSNR, dB": ("fidelity", "psnr"),
        "error in features": ("fidelity", "feature_rmse"),
        "of the grid": ("split", "grid"),
        "not learned": ("split", "learning"),
    }
    for header, (group, key) in columns.items():
        check(table, header, {f"{row['calls']}": spread(row[group][key]) for row in STUDENTS})
    assert len(table.head) == 1 + len(columns)


def test_drift(read):
    table = read["Drift of each measure"]
    names = [drift["measure"] for drift in STUDENTS[0]["drift"]]
    check(table, "limit", {name: (0.03,) for name in names})
    for row in STUDENTS:
        header = f"{row['calls']} call{'s' if row['calls'] > 1 else ''}"
        check(table, header, {drift["measure"]: spread(drift["change"]) for drift in row["drift"]})


def test_memorisation(read):
    table = read["Memorisation"]
    columns = {
        "to training images": "train",
        "of held-out images": "held_out",
        "ratio": "ratio",
        "copies, above held-out images": "copies",
    }
    for header, key in columns.items():
        rows = (FULL, *STUDENTS)
        check(table, header, {row["name"]: spread(row["memorisation"][key]) for row in rows})
    assert table.head == ["samples of", *columns]


def test_what_training_cost(read):
    table, costs = read["Cost of training"], FOUND["run"]["cost"]
    names = {"the teacher": costs["teacher"], "all halvings": costs["halvings"]}
    for header, key in {"updates": "updates", "forwards": "forwards", "time": "seconds"}.items():
        check(table, header, {name: (one[key],) for name, one in names.items()})


def test_what_sampling_costs(read):
    teacher_seconds = FULL["cost"]["seconds_per_sample"]["64"]
    ours = {row["name"]: row["cost"] for row in (FULL, *STUDENTS, *VARIANTS)}
    others = {under(row): row["cost"] for row in BASELINES}
    for label, rows in {"Cost of sampling": ours, "Cost of sampling the baselines": others}.items():
        columns = {
            "calls": lambda cost: cost["calls"],
            "batch of 1": lambda cost: cost["seconds_per_sample"]["1"],
            "batch of 64": lambda cost: cost["seconds_per_sample"]["64"],
            "faster by": lambda cost: teacher_seconds / cost["seconds_per_sample"]["64"],
            "peak memory": lambda cost: cost["peak_bytes"],
            "parameters": lambda cost: cost["parameters"],
            "multiply-adds": lambda cost: cost["multiply_adds"],
        }
        assert read[label].head == ["sampled by", *columns]
        for header, of in columns.items():
            check(read[label], header, {name: (of(cost),) for name, cost in rows.items()})


def test_compressed(read):
    table, made = read["Compressed students"], {row["compressed"]["kind"]: row for row in VARIANTS}
    rows = {
        "student, 2 steps": STUDENTS[-2],
        "pruned": made["pruned"],
        "student, 1 step": STUDENTS[-1],
        "int8": made["int8"],
    }
    columns = {
        "Fréchet distance": lambda row: spread(row["distances"]["frechet_distance"]),
        "ratio to student": lambda row: spread(row["compressed"]["ratio"]),
        "error to student (rms)": lambda row: spread(row["compressed"]["rmse"]),
        "on the disk": lambda row: (row["compressed"]["bytes"],),
        "zeros": lambda row: (row["compressed"]["zeros"],),
        "batch of 1": lambda row: (row["cost"]["seconds_per_sample"]["1"],),
        "batch of 64": lambda row: (row["cost"]["seconds_per_sample"]["64"],),
    }
    assert table.head == ["sampled by", *columns]
    for header, of in columns.items():
        check(table, header, {name: of(row) for name, row in rows.items()})


# ---- guided


@pytest.fixture(scope="module")
def slider():
    return tables(sliders(typed(FOUND, guided_pictures())))


@pytest.mark.parametrize("which", ["read", "slider"])
def test_every_guidance_scale(which, request):
    table = request.getfixturevalue(which)["Every guidance scale and number of steps"]
    rows = {
        f"guidance scale {row['guidance_scale']:g} {row['name']}": row
        for row in FOUND["guided"]["rows"]
    }
    columns = {
        "to the guided teacher": "distance",
        "paired error (rms)": "rmse",
        "times the floor": "floor_ratio",
    }
    for header, key in columns.items():
        check(table, header, {name: spread(row[key]) for name, row in rows.items()})
    check(table, "calls", {name: (row["calls"],) for name, row in rows.items()})
    floors = {name for name, cell in table["times the floor"].items() if cell == "the floor"}
    assert floors == {name for name, row in rows.items() if row["role"] == "teacher"}
    assert len(table.head) == 5


def test_the_curves_of_guidance_in_numbers(read):
    table, rows = read["The curves in numbers"], FOUND["guided"]["rows"]
    for header, key in {
        "guidance scale": "guidance_scale",
        "Fréchet distance to the data": "data_distance",
        "Inception score": "inception_score",
    }.items():
        assert [
            says(row[table.head.index(header)], one[key])
            for row, one in zip(table.rows, rows, strict=True)
        ] == [True] * 20
    assert [row[0] for row in table.rows] == [row["name"] for row in rows]


def test_the_two_that_are_shown_beside_each_other(slider):
    table = slider["What was measured of these two"]
    row_by_role = {
        row["role"]: row
        for row in FOUND["guided"]["rows"]
        if row["guidance_scale"] == 2 and row["steps"] in (64, 4)
    }
    assert table.head == ["at guidance scale 2", "student", "guided teacher"]
    for role, header in (("student", "student"), ("teacher", "guided teacher")):
        cells, row = table[header], row_by_role[role]
        assert says(cells["network calls"], row["calls"])
        assert says(cells["Fréchet distance to the guided teacher"], *spread(row["distance"]))
        assert says(cells["paired error (rms)"], *spread(row["rmse"]))
        assert says(cells["times the floor"], *spread(row["floor_ratio"]))
    assert list(cells) == [
        "network calls",
        "Fréchet distance to the guided teacher",
        "times the floor",
        "paired error (rms)",
    ]


# ---- reconstruction


def test_reconstruction_errors():
    rows = [
        {
            "role": who,
            "name": f"{who}, {steps} steps",
            "steps": steps,
            "full": {"value": 0.1 + k / 8, "low": 0.11 + k / 8, "high": 0.12 + k / 8},
            "same": {"value": 0.13 + k / 8, "low": 0.14 + k / 8, "high": 0.15 + k / 8}
            if k != 2
            else None,
        }
        for k, (who, steps) in enumerate(
            [("teacher", 64), ("baseline", 8), ("student", 8), ("student", 4)]
        )
    ]
    content = {name: evidence()[name] for name in ("provenance", "run")}
    content["reconstruction"] = {"images": 12_345, "held_out": True, "full": 64, "rows": rows}
    content["reconstruction"]["data"] = "7" * 64
    text = render(typed(content | {"training": [], "headline": "said", "verdict": "x"}))
    table = tables(text)["Reconstruction error"]
    assert table.head == ["encoded by", "calls", "decoded in 64 steps", "decoded in as many steps"]
    check(table, "calls", {row["name"]: (row["steps"],) for row in rows})
    check(table, "decoded in 64 steps", {row["name"]: spread(row["full"]) for row in rows})
    check(table, "decoded in as many steps", {row["name"]: spread(row["same"]) for row in rows})
    assert "12,345 images that were held out" in text


# ---- pictures


def test_every_picture_stands_in_its_row():
    """Read back by the name that stands beside it."""
    shown = pictures()
    text = render(typed(evidence() | {"training": []}, shown))
    strips = re.findall(
        r'<span class="name"[^>]*>([^<]+)</span>\n<div class="row">(.*?)</div>', text, re.S
    )
    grid, worst = shown["grid_labels"].tolist(), shown["worst_labels"].tolist()
    assert [unescape(label) for label, _ in strips] == [*grid, *grid[1:], *worst]
    pixels = {"grid": shown["grid"] / 127.5, "worst": shown["worst"] / 127.5}
    minus = [pixels["grid"][1:] - pixels["grid"][:1], pixels["worst"][:, 1] - pixels["worst"][:, 0]]
    told = [float(x) for x in re.findall("white is ([0-9.]+) or more", text)]
    assert all(np.mean(abs(x) > scale) <= 0.01 for x, scale in zip(minus, told, strict=True))
    grey = [127.5 + 127.5 * x / scale for x, scale in zip(minus, told, strict=True)]
    stacks = [*shown["grid"], *grey[0]]
    stacks += [[*pair, three] for pair, three in zip(shown["worst"], grey[1], strict=True)]
    for (_, row), stack in zip(strips, stacks, strict=True):
        sources = re.findall(r'src="data:image/png;base64,([^"]*)"', row)
        for source, expected in zip(sources, stack, strict=True):
            drawn = np.asarray(Image.open(BytesIO(b64decode(source))))
            assert (abs(drawn - expected[..., 0].clip(0, 255)) <= 0.501).all()


def test_the_largest_batch_is_the_largest_number():
    """And not the last in the alphabet."""
    content = different()
    for row in content["rows"]:
        taken = row["cost"]["seconds_per_sample"]
        taken["8"] = taken.pop("1")
    expected = {row["cost"]["seconds_per_sample"]["64"] for row in content["rows"]}
    assert {line.seconds for line in sizes(typed(content))} == expected
    assert page_tables.cost_table(typed(content).rows, typed(content).teacher).batches == [8, 64]
