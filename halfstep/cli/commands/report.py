"""`halfstep report RUN`: write the report of a run as one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from halfstep.cli.console.next_command import say_export
from halfstep.cli.console.progress import say, terminal
from halfstep.cli.console.tables import say_report
from halfstep.cli.console.verdicts import print_verdict
from halfstep.cli.parse import parse
from halfstep.config.fields import POSITIONAL
from halfstep.evaluation.report_files import read_report, REPORT
from halfstep.workflows.report import write_report


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write RUN/report.html, and for a guided run RUN/slider.html, from report.json; evaluate the run first
    if it was not evaluated."""

    run: Annotated[Path, POSITIONAL]
    """The run's folder."""


def main(argv: Sequence[str]) -> int:
    """Write the page; print its path."""
    console = terminal()
    options = parse(Report, argv, prog="halfstep report")
    if not (options.run / REPORT).exists():
        from halfstep.cli.commands.evaluate import main as evaluate

        return evaluate([str(options.run)])
    report = read_report(options.run)
    page = write_report(report, options.run)
    print_verdict(console, report)
    say_report(console, page)
    if "guided" in report.pictures:
        say(console, "slider", page.with_name("slider.html"))
    say_export(console, options.run)
    return 0
