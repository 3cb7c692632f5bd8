"""OUT/compare.html: methods compared at equal cost, as one self-contained page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean as average

from halfstep.evaluation.method_data import (
    ComparedMethod,
    ComparedRun,
    MethodComparison,
    MethodMean,
    MethodRow,
    TRAINED,
)
from halfstep.files import name_of
from halfstep.report.data_tables import Rows, spread
from halfstep.report.downloads import downloads
from halfstep.report.images.grids import sheets
from halfstep.report.plots.figures import without_figures
from halfstep.report.plots.methods import method_figures
from halfstep.report.plots.svg import COLOURS
from halfstep.report.table_rows import named_values
from halfstep.report.templates import template, write_page
from halfstep.report.words import methods as words, numbers

LIMIT = 5_000_000
SHORT = ("start", "first", "stop", "solver", "noises", "weighting", "updates", *TRAINED)
"""Options that the table of costs shows, of the methods that have them."""


def write_methods_page(comparison: MethodComparison, path: Path) -> Path:
    """Write the page, without scripts, and return its path.

    `ConfigError` for a page of 5 MB or more.
    """
    page = render(comparison, name_of(path.parent))
    instead = "compare fewer methods, or show fewer seeds (--shown)"
    return write_page(path, page, limit=LIMIT, name="the page", instead=instead)


def render(comparison: MethodComparison, folder: str) -> str:
    """The page as text; `folder` names the comparison."""
    made, drawn = asdict(comparison.provenance), method_figures(comparison)
    costs, drift = cost_lines(comparison), drift_lines(comparison)
    tables: dict[str, Rows] = {
        "methods": [_mean_row(mean) for mean in comparison.means],
        "seeds": [_seed_row(row) for row in comparison.rows],
        "drift": _drift_rows(comparison),
        "cost": [asdict(line) for line in costs],
        "versions": named_values(made.items()),
    }
    return template("methods.html.j2").render(
        comparison=comparison,
        folder=folder,
        groups=groups(comparison),
        several=any(mean.seeds > 1 for mean in comparison.means),
        other_targets=other_targets(comparison),
        cautions=words.cautions(comparison),
        sheet=sheets(comparison.pictures).grid,
        drift=drift,
        drift_names=_drift_names(comparison),
        alarms=sum(alarm for line in drift for _, alarm in line.changes),
        costs=costs,
        figures=drawn,
        without_figures=without_figures(),
        downloads=downloads(folder, {k: t for k, t in tables.items() if t}, drawn),
        made=made,
        colours=COLOURS,
        words=words,
        dash=numbers.DASH,
        guided=True,  # the style of groups of rows
    )


@dataclass(frozen=True)
class CountGroup:
    """The rows of one number of steps; `winner` is the method that is better than all others."""

    steps: int
    calls: int
    winner: str | None
    means: Sequence[MethodMean]


def groups(comparison: MethodComparison) -> list[CountGroup]:
    """The rows of the table, by number of steps, in the order of the methods."""
    found = []
    for verdict in comparison.verdicts:
        means = [mean for mean in comparison.means if mean.steps == verdict.steps]
        winner = verdict.best if verdict.answer == "better" else None
        calls = max(mean.calls for mean in means)
        found.append(CountGroup(verdict.steps, calls, winner, means))
    return found


def other_targets(comparison: MethodComparison) -> dict[str, str]:
    """The trajectories that a method learns, where they are not the target's."""
    target = comparison.target.sampler, comparison.target.steps
    return {
        method.name: words.sampling(*method.learns)
        for method in comparison.methods
        if method.learns is not None and method.learns != target
    }


@dataclass(frozen=True)
class CostLine:
    """What the runs of a method cost to train, on average; None if unknown."""

    name: str
    command: str
    runs: int
    updates: float | None
    forwards: float | None
    seconds: float | None
    options: str


def cost_lines(comparison: MethodComparison) -> list[CostLine]:
    """The cost of each method."""
    return [
        _cost(method, [run for run in comparison.runs if run.method == method.name])
        for method in comparison.methods
    ]


def _cost(method: ComparedMethod, runs: Sequence[ComparedRun]) -> CostLine:
    costs = [run.cost for run in runs if run.cost is not None]
    options = [
        f"{name.replace('_', ' ')} {_text(method.options[name])}"
        for name in SHORT
        if name in method.options
    ]
    return CostLine(
        name=method.name,
        command=method.command,
        runs=len(runs),
        updates=average(cost.updates for cost in costs) if costs else None,
        forwards=average(cost.forwards for cost in costs) if costs else None,
        seconds=average(cost.seconds for cost in costs) if costs else None,
        options=", ".join(options),
    )


def _text(value: object) -> str:
    values = value if isinstance(value, list | tuple) else (value,)
    return " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)


@dataclass(frozen=True)
class DriftLine:
    """Drift of a method's students of one number of steps: mean change and alarm of each measure."""

    method: str
    steps: int
    changes: Sequence[tuple[float, bool]]


def drift_lines(comparison: MethodComparison) -> list[DriftLine]:
    """The drift of each method and number of steps, over its seeds."""
    names, lines = _drift_names(comparison), list[DriftLine]()
    for mean in comparison.means:
        rows = [
            row for row in comparison.rows if (row.method, row.steps) == (mean.method, mean.steps)
        ]
        by = [{drift.measure: drift for drift in row.drift} for row in rows if row.drift]
        if by:
            changes = [
                (
                    average(each[name].change.value for each in by),
                    any(each[name].alarm for each in by),
                )
                for name in names
            ]
            lines.append(DriftLine(mean.method, mean.steps, changes))
    return lines


def _drift_names(comparison: MethodComparison) -> list[str]:
    drifts = (drift for row in comparison.rows for drift in row.drift or ())
    return list(dict.fromkeys(drift.measure for drift in drifts))


def _drift_rows(comparison: MethodComparison) -> Rows:
    return [
        {
            "method": row.method,
            "steps": row.steps,
            "seed": row.seed,
            "measure": drift.measure,
            **spread("change", drift.change),
        }
        for row in comparison.rows
        for drift in row.drift or ()
    ]


def _mean_row(mean: MethodMean) -> dict[str, str | int | float | bool | None]:
    values = {name: value for name, value in vars(mean).items() if not name.endswith("ratio")}
    ratios = spread("ratio", mean.ratio) | spread("target_ratio", mean.target_ratio)
    return {**values, **ratios}


def _seed_row(row: MethodRow) -> dict[str, str | int | float | bool | None]:
    return {
        "method": row.method,
        "steps": row.steps,
        "calls": row.calls,
        "seed": row.seed,
        **spread("frechet_distance", row.distance),
        **spread("ratio", row.ratio),
        **spread("target_ratio", row.target_ratio),
        **spread("rmse", row.rmse),
        **spread("teacher_rmse", row.teacher_rmse),
    }
