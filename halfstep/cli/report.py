"""`halfstep report RUN`: the evidence of a run on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from halfstep.cli.judging import EVIDENCE, read_evidence
from halfstep.cli.options import parse
from halfstep.cli.progress import say, terminal
from halfstep.config.fields import POSITIONAL
from halfstep.report.page import write_report
from halfstep.report.slider import write_slider


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write RUN/report.html from what was measured (of a guided run RUN/slider.html too); measure it first
    where it was not."""

    run: Annotated[Path, POSITIONAL]
    """The run's folder."""


def report(argv: Sequence[str]) -> int:
    """Write the page; say where."""
    console = terminal()
    options = parse(Report, argv, prog="halfstep report")
    if not (options.run / EVIDENCE).exists():
        from halfstep.cli.evaluate import evaluate

        return evaluate([str(options.run)])
    found, pictures = read_evidence(options.run)
    page = write_report(options.run, found, pictures)
    slider = write_slider(options.run, found, pictures)
    say(console, "verdict", found["verdict"])
    say(console, "report", page)
    if slider:
        say(console, "slider", slider)
    return 0
