"""`halfstep compare`: parse, plan, train, measure, print."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide, say_words
from halfstep.cli.console.comparison import print_comparison
from halfstep.cli.console.next_command import say_export
from halfstep.cli.console.progress import Bars, counting, reading, say, span, terminal, too_long
from halfstep.cli.console.run_lines import describe, describe_data
from halfstep.cli.parse import parse
from halfstep.data import Data
from halfstep.methods.stages import cost_after, Stage
from halfstep.training import TrainingConfig
from halfstep.training.distributed import Processes
from halfstep.training.run_folder import RunFolder
from halfstep.training.stages import DryRunFinished
from halfstep.workflows.compare import prepare_comparison
from halfstep.workflows.compare_config import CompareConfig, PAGE
from halfstep.workflows.compare_runs import Part, PreparedComparison, refuse_other_runs
from halfstep.workflows.compare_scores import evaluated
from halfstep.workflows.dry_run import seconds_per_update


def main(argv: Sequence[str]) -> int:
    """Compare methods at equal cost: train the runs that are missing, measure all, write one page."""
    console = terminal()
    config = parse(CompareConfig, argv, prog="halfstep compare")
    with reading(console, config.dataset.data or "the data") as progress:
        prepared = prepare_comparison(config, progress=progress)
    _say_plan(console, prepared)
    config = prepared.config
    with prepared.closing:
        refuse_other_runs(prepared)
        if config.folder.dry_run:
            _print_runs(console, prepared, _seconds_of_forward(prepared))
            return 0
    _print_runs(console, prepared, {})
    for k, part in enumerate(prepared.parts):
        _train(console, prepared, part, f"{k + 1} of {len(prepared.parts)}")
    with counting(console, f"{config.evaluation.samples:,} samples a student") as progress:
        comparison = evaluated(prepared, progress)
    print_comparison(console, comparison)
    say(console, "numbers", config.folder.out / "compare.json")
    say(console, "page", config.folder.out / PAGE)
    best = comparison.verdicts[-1].best  # at the fewest steps
    runs = [run.folder for run in comparison.runs if run.method == best]
    trained = best in [entry.name for entry in prepared.entries]
    say_export(
        console, config.folder.out / runs[0] if trained else Path(runs[0]), net=config.teacher.net
    )
    return 0


def _say_plan(console: Console, prepared: PreparedComparison) -> None:
    config, batch = prepared.config, prepared.training.batch_size
    name = config.teacher.teacher or config.teacher.official.model
    say(console, "teacher", f"{name}: {describe(prepared.teacher)}")
    say(console, "data", describe_data(config.dataset, prepared.data))
    sampler, steps = config.compare.target
    say(console, "target", f"the teacher by {sampler} in {steps} steps, the same for all methods")
    if prepared.entries:
        budget = f"{config.compare.budget or 0:,} forwards a run, {batch} samples an update"
        say(console, "budget", budget)
    for entry in prepared.entries:
        if entry.unused:
            names = ", ".join(name.replace("_", "-") for name in entry.unused)
            text = f"not taken from the file of {entry.name}, but one for all: {names}"
            say_words(console, "note", text)


def _print_runs(console: Console, prepared: PreparedComparison, seconds: dict[str, float]) -> None:
    """Print updates, cost and state of each run; the time that is left if it is known."""
    heads = ["run", "updates", "forwards", "state", *(["time left here"] if seconds else [])]
    table, total = Columns(*heads, words=("state",)), 0.0
    for part in prepared.parts:
        updates = " ".join(f"{stage.updates:,}" for stage in part.plan(prepared))
        state, remaining = _state(part, prepared)
        cells = [part.name, updates, f"{part.forwards:,}", state]
        if seconds:
            left = seconds[part.entry.name] * part.forwards * remaining
            total += left
            cells.append(span(left))
        table.add_row(*cells)
    for method in prepared.beside:
        for folder in method.runs.values():
            cost = RunFolder(folder).cost
            forwards = "" if cost is None else f"{cost['forwards']:,.0f}"
            table.add_row(folder, "", forwards, "beside", *([""] if seconds else []))
    print_wide(console, table)
    if seconds:
        basis = "an estimate from a few updates of each method"
        say(console, "time", f"about {span(total)} of training in all: {basis}")
        if warning := too_long(total):
            say(console, "note", warning)


def _state(part: Part, prepared: PreparedComparison) -> tuple[str, float]:
    """The state of a run in words, and the share of its cost that is left."""
    progress = part.progress(prepared)
    if progress is None:
        return "new", 1.0
    if progress.finished:
        return "finished", 0.0
    return f"{progress.done:.0%} done", 1 - progress.done


def _seconds_of_forward(prepared: PreparedComparison) -> dict[str, float]:
    """The seconds of one sample's forward here, by the first stage of each method; every check is made."""
    seconds = dict[str, float]()

    def time(
        stages: Iterator[Stage], data: Data, training: TrainingConfig, processes: Processes
    ) -> None:
        first = next(stages)
        taken, _ = seconds_per_update(first, data, training, processes.device)
        seconds[name] = taken / (training.batch_size * first.objective.forwards)

    for part in prepared.parts:
        name = part.entry.name
        if name not in seconds:
            with suppress(DryRunFinished):
                part.train(prepared, dry_run=time)
    return seconds


def _train(console: Console, prepared: PreparedComparison, part: Part, number: str) -> None:
    """Train a run with its bars, or say that it is finished."""
    plan = part.plan(prepared)
    say(console, "run", f"{number}: {part.folder}")

    def after(stage: Stage) -> float:
        return cost_after(plan, stage.name, prepared.training.batch_size)

    with Bars(console, cost_after=after) as bars:
        part.train(prepared, bars)
    if not bars.began:
        say(console, "done", "it was finished before")
