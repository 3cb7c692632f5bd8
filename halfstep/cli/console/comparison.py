"""A comparison of methods in the terminal."""

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.evaluation.method_data import MethodComparison, ReferenceWalk
from halfstep.report.words.numbers import figure, interval


def print_comparison(console: Console, comparison: MethodComparison) -> None:
    """Print the references, a row for each method and number of steps, and the verdicts."""
    table = Columns(
        "", "calls", "/ teacher", "/ target", "seeds ±", "rmse, teacher", "rmse, target"
    )
    for name, walk in (("teacher", comparison.teacher), ("target", comparison.target)):
        table.add_row(*_reference(name, walk), style="dim")
    for count in comparison.counts:
        for mean in (m for m in comparison.means if m.steps == count):
            table.add_row(
                mean.method, str(mean.calls), interval(mean.ratio, 3),
                figure(mean.target_ratio.value, 3), _cell(mean.spread), _cell(mean.teacher_rmse),
                _cell(mean.rmse),
            )  # fmt: skip
    print_wide(console, table)
    for sentence in comparison.sentences:
        say_words(console, "verdict", sentence)
    say_words(
        console,
        "read",
        "Fréchet distance over the teacher's and the target's; rmse to the pictures of each",
    )


def _reference(name: str, walk: ReferenceWalk) -> list[str]:
    ratio = "1" if walk.ratio is None else interval(walk.ratio, 3)
    rmse = "" if walk.rmse is None else figure(walk.rmse.value, 3)
    return [f"{name}, {walk.sampler}", str(walk.calls), ratio, "", "", rmse, ""]


def _cell(value: float | None) -> str:
    return "" if value is None else figure(value, 3)
