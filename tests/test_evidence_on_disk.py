"""RUN/report.json: what is written can be read, and what was not written so is refused."""

import copy

import pytest

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.evaluation.evidence_on_disk import read_evidence_of
from tests.support.evidence import evidence, guided, measured


def samples():
    """Of a guided run, with a row of every kind."""
    found = guided() | {"verdict": "all was kept"}
    last = found["rows"][-1]
    small = {"kind": "int8", "of": last["name"], "bytes": 9, "zeroed": 0.5} | dict.fromkeys(
        ("rmse", "ratio"), measured(1.1)
    )
    last["compressed"] = small | {"kind": "as trained", "rmse": None, "ratio": None}
    other = {"who": "other", "network": "n", "student_over_it": measured(0.9)}
    plain = {name: value for name, value in last.items() if name != "compressed"}
    found["rows"] += [
        copy.deepcopy(last) | {"who": "compressed", "compressed": small},
        copy.deepcopy(plain) | other,
    ]
    return found


def encoders():
    """Of a run of encoders."""
    found = evidence() | {"verdict": "images come back", "rows": []}
    row = {"name": "student", "who": "student", "steps": 3, "full": measured(0.1), "same": None}
    told = {"images": 3, "held_out": False, "full": 64, "rows": [row]}
    return found | {
        "measure": {"data": "7" * 64, "samples": 3, "machine": "2 CPU cores"},
        "run": {"folder": "run", "config": {}},
        "reconstruction": told,
    }


@pytest.mark.parametrize("found", [samples(), encoders()], ids=["samples", "encoders"])
def test_what_is_written_is_read(found, tmp_path):
    storage.write_json(tmp_path / "report.json", found)
    assert read_evidence_of(tmp_path / "report.json") == found


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
        (samples, ("rows", 0, "who"), "nobody", "who"),
        (samples, ("rows", -3, "distances", "recall"), 3, "recall"),
        (samples, ("rows", -3, "split", "grid"), {}, "grid"),
        (samples, ("rows", -3, "drift", 0, "change", "low"), None, "change"),
        (samples, ("rows", -3, "cost", "seconds_per_sample"), {"x": 1.0}, "seconds_per_sample"),
        (samples, ("rows", -2, "compressed"), GONE, "is damaged"),
        (samples, ("rows", -1, "network"), GONE, "is damaged"),
        (samples, ("run", "gate", "tried", 0, "ratio"), {}, "ratio"),
        (samples, ("run", "cost", "teacher"), {"seconds": 1.0}, "cost.teacher"),
        (samples, ("made", "command"), GONE, "command"),
        (samples, ("rows", -3, "calls"), 0, "calls"),
        (samples, ("rows", -3, "distances", "frechet_distance", "value"), 0.0, "too small"),
        (samples, ("rows", -3, "cost", "seconds_per_sample", "64"), -1.0, "too small"),
        (samples, ("guided", "rows", 0, "to_data"), -0.5, "to_data"),
        (samples, ("training", 0, "update"), -1, "update"),
        (encoders, ("reconstruction",), GONE, "is damaged"),
        (encoders, ("reconstruction", "rows", 0, "full"), None, "is damaged"),
        (encoders, ("rows",), samples()["rows"], "is damaged"),
    ],
)
def test_what_is_not_written_so_is_refused(kind, at, value, word, tmp_path):
    storage.write_json(tmp_path / "report.json", changed(kind(), at, value))
    with pytest.raises(CheckpointError, match=f"{word}.*; write halfstep evaluate again"):
        read_evidence_of(tmp_path / "report.json")
