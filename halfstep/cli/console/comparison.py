"""A comparison of methods in the terminal."""

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.evaluation.method_data import MethodComparison, MethodMean, ReferenceWalk
from halfstep.report.words.numbers import figure, interval

READ = "Fréchet distance over the teacher's and the target's; rmse to the pictures of each"


def print_comparison(console: Console, comparison: MethodComparison) -> None:
    """Print the references, a row for each method and number of steps, and the verdicts."""
    several = any(mean.seeds > 1 for mean in comparison.means)
    seeds = ["seeds differ ±"] if several else []
    table = Columns(
        "", "calls", "/ teacher", "/ target", *seeds, "rmse to teacher", "rmse to target"
    )
    for name, walk in (("teacher", comparison.teacher), ("target", comparison.target)):
        table.add_row(*_reference(name, walk, several), style="dim")
    for count in comparison.counts:
        for mean in (m for m in comparison.means if m.steps == count):
            table.add_row(*_mean(mean, several))
    print_wide(console, table)
    for sentence in comparison.sentences:
        say_words(console, "verdict", sentence)
    say_words(console, "read", READ)


def _reference(name: str, walk: ReferenceWalk, several: bool) -> list[str]:
    """The cells of the teacher or the target, whose ratio to the target is not shown."""
    ratio = "1" if walk.ratio is None else interval(walk.ratio, 3)
    rmse = None if walk.rmse is None else walk.rmse.value
    cells = [f"{name}, {walk.sampler}", str(walk.calls), ratio, ""]
    return [*cells, *([""] if several else []), _cell(rmse), ""]


def _mean(mean: MethodMean, several: bool) -> list[str]:
    ratios = [interval(mean.ratio, 3), figure(mean.target_ratio.value, 3)]
    spread = [_cell(mean.spread)] if several else []
    errors = [_cell(mean.teacher_rmse), _cell(mean.rmse)]
    return [mean.method, str(mean.calls), *ratios, *spread, *errors]


def _cell(value: float | None) -> str:
    return "" if value is None else figure(value, 3)
