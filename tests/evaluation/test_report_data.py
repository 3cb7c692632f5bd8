"""RUN/report.json: what is written can be read, and what was not written so is refused."""

import pytest

from halfstep import storage
from halfstep.errors import CheckpointError
from halfstep.evaluation.report_files import read_report
from halfstep.schema import plain
from tests.support.evidence import encoder_report, full_report


@pytest.mark.parametrize("content", [full_report(), encoder_report()], ids=["samples", "encoders"])
def test_what_is_written_is_read(content, tmp_path):
    storage.write_json(tmp_path / "report.json", content)
    assert {"format": 3, **plain(read_report(tmp_path))} == content


GONE = object()


def changed(content, at, value):
    """The evidence with another value at this place, or without it."""
    *path, last = at
    holder = content
    for key in path:
        holder = holder[key]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return content


@pytest.mark.parametrize(
    "kind, at, value, word",
    [
        (full_report, ("rows",), [{}], "rows"),
        (full_report, ("rows",), [], "no rows"),
        (full_report, ("measure",), {}, "data"),
        (full_report, ("measure", "samples"), "x", "samples"),
        (full_report, ("measure", "floor"), GONE, "floor"),
        (full_report, ("training", 0), {}, "loss"),
        (full_report, ("training", 0, "loss"), "x", "loss"),
        (full_report, ("guided", "rows", 0, "distance"), None, "distance"),
        (full_report, ("guided", "reference"), {}, "reference"),
        (full_report, ("rows", 0, "role"), "nobody", "role"),
        (full_report, ("rows", -3, "distances", "recall"), 3, "recall"),
        (full_report, ("rows", -3, "split", "grid"), {}, "grid"),
        (full_report, ("rows", -3, "drift", 0, "change", "low"), None, "change"),
        (full_report, ("rows", -3, "cost", "seconds_per_sample"), {"x": 1.0}, "seconds_per_sample"),
        (full_report, ("rows", -2, "compressed"), GONE, "is damaged"),
        (full_report, ("rows", -1, "network"), GONE, "is damaged"),
        (full_report, ("rows", -2, "compressed"), None, "lacks"),
        (full_report, ("rows", -1, "network"), None, "lacks"),
        (full_report, ("run", "gate", "decisions", 0, "ratio"), {}, "ratio"),
        (full_report, ("run", "cost", "teacher"), {"seconds": 1.0}, "cost.teacher"),
        (full_report, ("provenance", "command"), GONE, "command"),
        (full_report, ("rows", -3, "calls"), 0, "calls"),
        (full_report, ("rows", -3, "distances", "frechet_distance", "value"), 0.0, "too small"),
        (full_report, ("rows", -3, "cost", "seconds_per_sample", "64"), -1.0, "at least"),
        (full_report, ("guided", "rows", 0, "data_distance"), -0.5, "data_distance"),
        (full_report, ("training", 0, "update"), -1, "update"),
        (encoder_report, ("reconstruction",), GONE, "lacks"),
        (encoder_report, ("reconstruction", "rows", 0, "full"), None, "is damaged"),
        (encoder_report, ("rows",), [], "no key of it"),
        (full_report, ("rows", 0, "role"), "student", "no rows that begin with the teacher"),
        (full_report, ("rows", 0, "more"), 1, "no key of it"),
        (full_report, ("rows", -3, "baseline"), {"names": ["x"], "ratio": None}, "names no row"),
        (full_report, ("rows", -3, "baseline"), {"names": [], "ratio": None}, "names no row"),
    ],
)
def test_what_is_not_written_so_is_refused(kind, at, value, word, tmp_path):
    storage.write_json(tmp_path / "report.json", changed(kind(), at, value))
    with pytest.raises(CheckpointError, match=f"{word}.*evaluate again"):
        read_report(tmp_path)
