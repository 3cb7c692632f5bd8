"""`halfstep compare knowledge`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.cli.console.next_command import say_next
from halfstep.cli.console.progress import counting, reading, say, span, terminal
from halfstep.cli.console.run_lines import as_typed, parameters_of
from halfstep.cli.parse import parse
from halfstep.evaluation.recipe_comparison import COMPARISON, RecipeComparison
from halfstep.report.words.recipes import explained, gain_cells, headline
from halfstep.workflows.compare_classifiers import (
    CompareClassifiersConfig,
    prepare_classifier_comparison,
)
from halfstep.workflows.compared_students import PAGE, StudentPlan


def main(argv: Sequence[str]) -> int:
    """Compare recipes; print the table and the files."""
    console = terminal()
    config = parse(CompareClassifiersConfig, argv, prog="halfstep compare knowledge")
    with reading(console, config.dataset.data) as progress:
        prepared = prepare_classifier_comparison(config, progress=progress)
    first, seeds = prepared.students[0].prepare(prepared.seeds[0]), prepared.seeds
    folders = ", ".join(map(str, config.networks.teacher))
    say(console, "teacher", f"{folders}: {parameters_of(first.teacher)}")
    say(console, "student", f"{config.networks.net}: {parameters_of(first.student)}")
    say(
        console,
        "data",
        f"{config.dataset.data}: {len(first.data):,} images of a seed to train with",
    )
    if config.folder.dry_run:
        print_plan(console, prepared.plan(), len(seeds))
        return 0
    runs = len(prepared.students) * len(seeds)
    with counting(console, f"{runs} students") as progress:
        comparison = prepared.run(progress=progress)
    print_comparison(console, comparison)
    say(console, "page", config.folder.out / PAGE)
    say(console, "numbers", config.folder.out / COMPARISON)
    best = max(comparison.students, key=lambda student: student.accuracy.value)
    number = [student.name for student in comparison.students].index(best.name)
    folder = prepared.students[number].prepare(seeds[0]).config.folder.out
    data = shlex.split(as_typed(config.dataset))
    say_next(console, "compress", folder, "--int8", *data, "--out", f"{folder}-int8")
    return 0


def print_plan(console: Console, plan: Sequence[StudentPlan], seeds: int) -> None:
    """Print the runs of a comparison and their cost."""
    table = Columns("student", "runs", "finished", "updates", "forwards", "time here")
    seconds = 0.0
    for row in plan:
        left = row.seconds * (seeds - row.done)
        seconds += left
        forwards = f"{row.forwards * seeds:,.0f}"
        table.add_row(row.name, seeds, row.done, f"{row.updates * seeds:,}", forwards, span(left))
    print_wide(console, table)
    for row in plan:
        say(console, "learns", f"{row.name}: {', '.join(row.terms)}")
    say(console, "time", f"about {span(seconds)} for the runs that are not finished")


def print_comparison(console: Console, comparison: RecipeComparison) -> None:
    """Print a row for each student, and what the verdicts mean."""
    gains = {gain.student: gain for gain in comparison.gains}
    table = Columns("student", "right, %", "gain, points", "verdict", words=("verdict",))
    for student in comparison.students:
        gain = gains.get(student.name)
        cells = gain_cells(gain) if gain is not None else ("", "the control")
        style = "bold green" if gain is not None and gain.verdict == "helps" else None
        table.add_row(student.name, f"{100 * student.accuracy.value:.2f}", *cells, style=style)
    print_wide(console, table)
    say_words(console, "verdict", headline(comparison))
    for sentence in explained(comparison):
        say_words(console, "", sentence)
    for caution in comparison.cautions:
        say_words(console, "caution", caution)
