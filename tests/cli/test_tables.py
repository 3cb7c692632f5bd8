"""What the terminal's tables say: every number under its header, of evidence in which no two are the same."""

import copy
import importlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from halfstep.cli.commands.compress import print_classifiers
from halfstep.cli.console import tables
from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.cli.console.progress import terminal
from halfstep.cli.console.verdicts import print_verdict
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.classification import Scores
from halfstep.schema import plain
from halfstep.workflows.compress_classifiers import CompressedClassifier
from halfstep.workflows.model_card import _lines
from halfstep.workflows.report_in_card import report_table
from tests.support.evidence import evidence, rows_of, typed
from tests.support.pages import different, says, spread

FOUND = different()
REPORT = typed(FOUND)


def columns(table):
    """The cells of each column, by its header."""
    return {column.header: list(column.cells) for column in table.columns}


@pytest.fixture
def printed(monkeypatch):
    """What a function prints as a table."""

    def of(function, *arguments):
        shown = []
        module = importlib.import_module(function.__module__)
        monkeypatch.setattr(module, "print_wide", lambda console, table: shown.append(table))
        function(Console(quiet=True), *arguments)
        [table] = shown
        return columns(table)

    return of


def check(cells, *wanted):
    assert len(cells) == len(wanted)
    for cell, numbers in zip(cells, wanted, strict=True):
        assert says(cell, *numbers), (cell, numbers)


def test_every_way_of_sampling(printed):
    cells, rows = printed(tables.print_rows, REPORT), FOUND["rows"]
    assert list(cells) == ["", "calls", "Fréchet distance", "/ teacher", "rmse to teacher"]
    assert cells[""] == [row["name"] for row in rows]
    check(cells["calls"], *((row["calls"],) for row in rows))
    check(
        cells["Fréchet distance"], *(spread(row["distances"]["frechet_distance"]) for row in rows)
    )
    check(cells["/ teacher"], *(spread(row["ratio"]) for row in rows))
    check(cells["rmse to teacher"], *(spread((row["fidelity"] or {}).get("rmse")) for row in rows))


def test_guided(printed):
    cells, rows = printed(tables.print_guided, REPORT.guided), FOUND["guided"]["rows"]
    assert list(cells) == ["", "guidance", "calls", "to guided teacher", "/ its own", "rmse"]
    check(cells["guidance"], *((row["guidance_scale"],) for row in rows))
    check(cells["calls"], *((row["calls"],) for row in rows))
    check(cells["to guided teacher"], *(spread(row["distance"]) for row in rows))
    check(cells["/ its own"], *(spread(row["floor_ratio"]) for row in rows))
    check(cells["rmse"], *(spread(row["rmse"]) for row in rows))


def test_sizes(printed):
    cells = printed(tables.print_sizes, REPORT)
    rows = sorted(FOUND["rows"], key=lambda row: (row["cost"]["multiply_adds"], row["name"]))
    heads = ["", "parameters", "calls", "multiply-adds", "a sample", "Fréchet distance", "best"]
    assert list(cells) == heads and cells[""] == [row["name"] for row in rows]
    check(cells["parameters"], *((row["cost"]["parameters"],) for row in rows))
    check(cells["calls"], *((row["calls"],) for row in rows))
    check(cells["multiply-adds"], *((row["cost"]["multiply_adds"],) for row in rows))
    check(cells["a sample"], *((row["cost"]["seconds_per_sample"]["64"],) for row in rows))
    values = [row["distances"]["frechet_distance"]["value"] for row in rows]
    check(cells["Fréchet distance"], *((value,) for value in values))
    assert cells["best"] == ["yes" * (x == min(values[: k + 1])) for k, x in enumerate(values)]


def test_compressed_students(printed):
    cells = printed(tables.print_compressed, REPORT)
    rows = [row for row in FOUND["rows"] if row.get("compressed")]
    assert cells.pop("") == [row["name"] for row in rows] and len(cells) == 6
    made = [row["compressed"] for row in rows]
    check(cells["bytes"], *((one["bytes"],) for one in made))
    check(cells["zeros"], *((one["zeros"],) for one in made))
    check(cells["/ student"], *(spread(one["ratio"]) for one in made))
    check(cells["rmse to student"], *(spread(one["rmse"]) for one in made))
    for batch in ("1", "64"):
        taken = [1000 * row["cost"]["seconds_per_sample"][batch] for row in rows]
        check(cells[f"ms, batch {batch}"], *((one,) for one in taken))


def classifier(kind, *, accuracy, agreement, size, zeros, seconds):
    scores = Scores(accuracy, nll=0.1, calibration=0.1, rows=9, agreement=agreement)
    return CompressedClassifier(
        kind=kind, scores=scores, bytes=size, zeros=zeros, seconds_per_image=seconds
    )


def test_compressed_classifiers(printed):
    rows = [
        classifier(
            f"kind {k}",
            accuracy=Interval(0.91 - k / 50, 0.895 - k / 50, 0.925 - k / 50),
            agreement=Interval(0.985 - k / 50, 0.97, 0.99),
            size=1_230_000 * (k + 1),
            zeros=0.333 * k,
            seconds=0.00147 * (k + 1),
        )
        for k in range(3)
    ]
    cells = printed(print_classifiers, rows)
    assert list(cells) == ["", "accuracy", "agrees", "bytes", "zeros", "ms, batch 64"]
    check(cells["accuracy"], *(spread(plain(row.scores.accuracy)) for row in rows))
    check(cells["agrees"], *((row.scores.agreement.value,) for row in rows))
    check(cells["bytes"], *((row.bytes,) for row in rows))
    check(cells["zeros"], *((row.zeros,) for row in rows))
    check(cells["ms, batch 64"], *((1000 * row.seconds_per_image,) for row in rows))


def encoders(rows):
    """The report of a run of encoders."""
    parts = {name: evidence()[name] for name in ("provenance", "run", "training")}
    parts["reconstruction"] = {
        "images": 1,
        "full": 64,
        "held_out": False,
        "rows": rows,
        "data": "7",
    }
    return typed(parts | {"headline": "said", "verdict": "said"})


def test_reconstructions():
    rows = [
        {
            "role": "student",
            "name": f"{k}",
            "steps": 3 * k,
            "full": interval,
            "same": {n: 2 * v for n, v in interval.items()},
        }
        for k, interval in (
            (1, {"value": 0.12, "low": 0.11, "high": 0.14}),
            (2, {"value": 0.33, "low": 0.31, "high": 0.34}),
        )
    ]
    cells = columns(tables.reconstruction_table(encoders(rows).reconstruction))
    heads = list(cells)
    check(cells[heads[1]], *((row["steps"],) for row in rows))
    check(cells[heads[2]], *(spread(row["full"]) for row in rows))
    check(cells[heads[3]], *(spread(row["same"]) for row in rows))


def test_the_card_of_an_exported_student():
    row = rows_of(FOUND, "student")[0]
    first, second = _lines(REPORT.students[0], replace(REPORT.measure, machine="a machine"))
    distance, ratio = first.split(
        " with 2,000 samples against 1,797 real images, features digits; "
    )
    assert says(distance, *spread(row["distances"]["frechet_distance"]))
    assert says(ratio.removesuffix(" times the teacher's"), *spread(row["ratio"]))
    taken = [row["cost"]["seconds_per_sample"][batch] for batch in ("1", "64")]
    for text, batch, seconds in zip(
        second.removesuffix(" (a machine)").split(", "), ("1", "64"), taken, strict=True
    ):
        text, end = text.split(" at batch ")
        assert says(text.removeprefix("- Seconds a sample: "), seconds) and end == batch
    [apart] = _lines(REPORT.students[0], replace(REPORT.measure, held_out=True))[:1]
    assert "against 1,797 real images that no network was trained on, features" in apart


EVIL = "ev\x1b[31mil"


def test_names_in_tables_are_text_in_the_terminal(capsys):
    table = Columns(EVIL, f"{EVIL} 2")
    table.add_row(EVIL, 3)
    print_wide(terminal(), table)
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.count(r"ev\x1b[31mil") == 3


def test_the_demos_ratio_less_the_floor(printed):
    """By hand: the teacher has 0.173, the floor is 0.096; none where the teacher may be at the floor."""
    content = evidence()
    cells = printed(tables.print_demo, typed(content))
    by = dict(zip(cells[""][:2], cells["less floor"][:2], strict=True))
    assert by == {"teacher, 64 steps": "1.000", "student": f"{0.082 / 0.077:.3f}"}
    content["measure"]["floor"] = 0.168  # of an interval from 0.167
    assert set(printed(tables.print_demo, typed(content))["less floor"]) == {"-"}


def test_both_verdicts_in_the_words_of_the_page(printed):
    cells = printed(print_verdict, REPORT)
    assert list(cells) == ["", "good enough", "better than the undistilled teacher"]
    assert cells[""] == [row["name"] for row in rows_of(FOUND, "student")]
    better = ["yes", "cannot tell", "no", "no baseline"]
    assert cells["better than the undistilled teacher"] == better
    tried = [(answer.good_enough, answer.better) for answer in REPORT.verdicts]
    assert tried == list(zip(cells["good enough"], better, strict=True))


def test_the_headline_and_the_sentence_follow_a_table_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_verdict(terminal(), REPORT)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[: 1 + len(REPORT.verdicts)])) <= 80
    rest = [" ".join(line.split()) for line in lines[1 + len(REPORT.verdicts) :]]
    assert max(map(len, lines)) <= 80
    assert " ".join(rest).startswith(f"verdict {REPORT.headline}") and REPORT.verdict in " ".join(
        rest
    )
    assert "samples 2,000 samples cannot tell whether the student is better" in " ".join(rest)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_that_is_too_wide_is_folded_and_then_stacked(width):
    def lines(columns):
        console = Console(width=width, file=io.StringIO(), highlight=False, markup=False)
        table = Columns("", *(f"a long head {k}" for k in range(columns)))
        table.add_row("first", *(f"0.{k}23 (0.101 to 0.199)" for k in range(columns)))
        table.add_row("second", *[""] * columns)
        print_wide(console, table)
        return console.file.getvalue().splitlines()

    two, four, nine = lines(2), lines(4), lines(9)
    assert all(max(map(len, each)) <= max(width, 80) for each in (two, four, nine))
    assert "0.123 (0.101 to 0.199)" in two[1]
    if width < 200:
        assert four[0].split() == ["a", "long", "a", "long", "a", "long", "a", "long"]
        assert "0.323" in four[2] and four[3].count("(0.101 to 0.199)") == 4
        assert nine[0] == "first" and nine[-1] == "second" and len(nine) == 11
        assert nine[9].split(maxsplit=4) == ["a", "long", "head", "8", "0.823 (0.101 to 0.199)"]
    else:
        assert "0.323 (0.101 to 0.199)" in four[1]


def test_sentences_break_at_words():
    console = Console(width=80, file=io.StringIO())
    say_words(console, "verdict", "eight steps keep the quality " * 8)
    first, *rest = console.file.getvalue().splitlines()
    assert first.startswith("verdict   eight") and all(line.startswith(" " * 10) for line in rest)
    assert max(map(len, [first, *rest])) <= 80
    assert " ".join([first, *rest]).split()[1:] == ("eight steps keep the quality " * 8).split()


def test_every_way_of_printing_a_table(capsys):
    changed = copy.deepcopy(FOUND)
    for row in (*changed["rows"], *changed["guided"]["rows"]):
        row["name"] += EVIL
        if row.get("compressed"):
            row["compressed"]["student"] += EVIL
        if row.get("baseline"):
            row["baseline"]["names"] = [name + EVIL for name in row["baseline"]["names"]]
    half = Interval(**spread_of(0.5))
    evil = classifier(EVIL, accuracy=half, agreement=half, size=1, zeros=0.5, seconds=1.0)
    encoder = {"role": "student", "name": EVIL, "steps": 1, "full": spread_of(0.5), "same": None}
    report = typed(changed)
    for function, expected in (
        (tables.print_rows, report),
        (tables.print_report, encoders([encoder])),
        (tables.print_guided, report.guided),
        (tables.print_sizes, report),
        (tables.print_compressed, report),
        (print_classifiers, [evil]),
    ):
        function(terminal(), expected)
        out = capsys.readouterr().out
        assert "\x1b" not in out and r"ev\x1b[31mil" in out, function


def spread_of(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_no_table_is_made_otherwise():
    folder = Path(tables.__file__).parent
    assert [p.name for p in folder.glob("*.py") if "rich.table" in p.read_text()] == ["columns.py"]


@pytest.mark.parametrize("floor, note", [(0.25, ""), (0.25, "by chance"), (0.0, "unknown: why")])
def test_the_floor_and_its_note_are_said(floor, note):
    measure = replace(REPORT.measure, floor=floor, floor_note=note, samples=1234)
    report, said = (
        replace(REPORT, measure=measure),
        "0.250 is what 1,234 perfect samples would score",
    )
    out = io.StringIO()
    tables.print_rows(Console(file=out, width=80), report)
    last = [line for line in out.getvalue().splitlines() if line.startswith("floor")]
    assert [said in last[0], note in out.getvalue()] == [floor > 0, True] and len(last) == 1
    card = report_table(report)[-1]
    assert card.endswith(
        f"the sampling floor is {note}."
        if not floor
        else f"0.250 is what as many perfect samples would score{note and ', ' + note}."
    )
