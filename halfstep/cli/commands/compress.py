"""`halfstep compress`: students in int8 or without their smallest weights, in the table of their run."""

from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.next_command import beside, net_words, say_next
from halfstep.cli.console.progress import counting, say, terminal
from halfstep.cli.console.tables import print_compressed, print_rows, say_report
from halfstep.cli.parse import parse
from halfstep.evaluation.report_data import Report
from halfstep.report.words.numbers import big, percent
from halfstep.workflows.compress import compress, CompressConfig
from halfstep.workflows.compress_classifiers import ACCURACY, CompressedClassifier


def main(argv: Sequence[str]) -> int:
    """Make the variants, evaluate them, print their table."""
    console = terminal()
    config = parse(CompressConfig, argv, prog="halfstep compress")
    with counting(console, f"compressing {config.run}") as progress:
        compressed = compress(**vars(config), progress=progress)
    folder = config.out or config.run
    for made in compressed.students:
        size = f"{big(made.bytes, 'B')} of {big(made.original_bytes, 'B')}"
        about = f"{made.kind}: {size}, {made.zeros:.1%} of its parameters 0"
        say(console, "made", f"{made.folder} ({about})")
    if isinstance(compressed.report, Report):
        print_rows(console, compressed.report)
        print_compressed(console, compressed.report)
        say_report(console, folder / "report.html")
    if compressed.classifiers:
        print_classifiers(console, compressed.classifiers)
        say(console, "numbers", folder / ACCURACY)
    if compressed.students and not compressed.classifiers:
        place = compressed.students[0].folder
        words = "sample", place, "--out", beside(place, "samples")
        say_next(console, *words, *net_words(config.net))
    else:
        say_next(console, "runs", folder.parent)
    return 0


def print_classifiers(console: Console, rows: Sequence[CompressedClassifier]) -> None:
    """Print the accuracy, the size and the time of a classifier and of its variants."""
    table = Columns("", "accuracy", "agrees", "bytes", "zeros", "ms, batch 64")
    for row in rows:
        agreement = row.scores.agreement
        table.add_row(
            row.kind,
            row.scores.accuracy,
            "" if agreement is None else f"{agreement.value:.2%}",
            big(row.bytes, "B"),
            percent(row.zeros).lstrip("+"),
            f"{1000 * row.seconds_per_image:.3g}",
        )
    print_wide(console, table)
