"""The verdicts of a report in the terminal, in the words of its page."""

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.evaluation.report_data import AnyReport, Report
from halfstep.report.words.headline import summarised
from halfstep.report.words.verdict import (
    BETTER,
    BETTER_WORDS,
    GOOD_ENOUGH,
    GOOD_WORDS,
    too_few_samples,
)


def print_verdict(console: Console, report: AnyReport) -> None:
    """Print both verdicts on each student, the headline, the sentence, and what takes more samples."""
    if not report.headline:
        report = summarised(report)
    few = list[str]()
    if isinstance(report, Report) and report.verdicts:
        table = Columns("", GOOD_ENOUGH, BETTER)
        for answer in report.verdicts:
            words = GOOD_WORDS[answer.good_enough], BETTER_WORDS[answer.better]
            table.add_row(answer.student, *words)
        print_wide(console, table)
        few = too_few_samples(report)
    say_words(console, "verdict", report.headline)
    say_words(console, "", report.verdict)
    for sentence in few:
        say_words(console, "samples", sentence)
