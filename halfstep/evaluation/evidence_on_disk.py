"""RUN/report.json, read again."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from halfstep import storage
from halfstep.evaluation.evidence import FORMAT


class Evidence(TypedDict):
    """What `halfstep evaluate` found."""

    format: int
    measure: dict[str, Any]
    rows: list[dict[str, Any]]
    made: dict[str, Any]
    run: dict[str, Any]
    training: list[dict[str, Any]]
    verdict: str
    guided: NotRequired[dict[str, Any]]
    reconstruction: NotRequired[dict[str, Any]]


def read_evidence_of(path: Path) -> Evidence:
    """`CheckpointError` where it is damaged, or was changed by hand."""
    return storage.read_json(path, Evidence, format=FORMAT, mend="write halfstep evaluate again")
