"""RUN/report.json: what is written can be read, and what was not written so is refused."""

import copy

import pytest

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.evaluation.report_files import read_report
from halfstep.schema import plain
from tests.support.evidence import evidence, guided, measured


def samples():
    """Of a guided run, with a row of every kind."""
    found = guided() | {"verdict": "all was kept"}
    last = found["rows"][-1]
    small = {"kind": "int8", "student": last["name"], "bytes": 9, "zeros": 0.5} | dict.fromkeys(
        ("rmse", "ratio"), measured(1.1)
    )
    last["compressed"] = small | {"kind": "as trained", "rmse": None, "ratio": None}
    other = {"role": "other", "network": "n", "student_ratio": measured(0.9)}
    found["rows"] += [
        copy.deepcopy(last) | {"role": "compressed", "compressed": small},
        copy.deepcopy(last) | {"compressed": None} | other,
    ]
    return found


def encoders():
    """Of a run of encoders."""
    found = {name: evidence()[name] for name in ("format", "provenance", "run", "training")}
    row = {"name": "student", "role": "student", "steps": 3, "full": measured(0.1), "same": None}
    told = {"data": "7" * 64, "images": 3, "held_out": False, "full": 64, "rows": [row]}
    return found | {"verdict": "images come back", "reconstruction": told}


@pytest.mark.parametrize("found", [samples(), encoders()], ids=["samples", "encoders"])
def test_what_is_written_is_read(found, tmp_path):
    storage.write_json(tmp_path / "report.json", found)
    assert {"format": 2, **plain(read_report(tmp_path))} == found


GONE = object()


def changed(found, at, value):
    """The evidence with another value at this place, or without it."""
    *path, last = at
    holder = found
    for key in path:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return found


@pytest.mark.parametrize(
    "kind, at, value, word",
    [
        (samples, ("rows",), [{}], "calls"),
        (samples, ("rows",), [], "no rows"),
        (samples, ("measure",), {}, "data"),
        (samples, ("measure", "samples"), "x", "samples"),
        (samples, ("measure", "floor"), GONE, "floor"),
        (samples, ("training", 0), {}, "loss"),
        (samples, ("training", 0, "loss"), "x", "loss"),
        (samples, ("guided", "rows", 0, "distance"), None, "distance"),
        (samples, ("guided", "reference"), {}, "reference"),
        (samples, ("rows", 0, "role"), "nobody", "role"),
        (samples, ("rows", -3, "distances", "recall"), 3, "recall"),
        (samples, ("rows", -3, "split", "grid"), {}, "grid"),
        (samples, ("rows", -3, "drift", 0, "change", "low"), None, "change"),
        (samples, ("rows", -3, "cost", "seconds_per_sample"), {"x": 1.0}, "seconds_per_sample"),
        (samples, ("rows", -2, "compressed"), GONE, "is damaged"),
        (samples, ("rows", -1, "network"), GONE, "is damaged"),
        (samples, ("rows", -2, "compressed"), None, "lacks"),
        (samples, ("rows", -1, "network"), None, "lacks"),
        (samples, ("run", "gate", "decisions", 0, "ratio"), {}, "ratio"),
        (samples, ("run", "cost", "teacher"), {"seconds": 1.0}, "cost.teacher"),
        (samples, ("provenance", "command"), GONE, "command"),
        (samples, ("rows", -3, "calls"), 0, "calls"),
        (samples, ("rows", -3, "distances", "frechet_distance", "value"), 0.0, "too small"),
        (samples, ("rows", -3, "cost", "seconds_per_sample", "64"), -1.0, "at least"),
        (samples, ("guided", "rows", 0, "data_distance"), -0.5, "data_distance"),
        (samples, ("training", 0, "update"), -1, "update"),
        (encoders, ("reconstruction",), GONE, "lacks"),
        (encoders, ("reconstruction", "rows", 0, "full"), None, "is damaged"),
        (encoders, ("rows",), [], "no key of it"),
        (samples, ("rows", 0, "role"), "student", "no rows that begin with the teacher"),
        (samples, ("rows", 0, "more"), 1, "no key of it"),
    ],
)
def test_what_is_not_written_so_is_refused(kind, at, value, word, tmp_path):
    storage.write_json(tmp_path / "report.json", changed(kind(), at, value))
    with pytest.raises(CheckpointError, match=f"{word}.*; write halfstep evaluate again"):
        read_report(tmp_path)
