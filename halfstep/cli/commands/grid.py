"""`halfstep grid`: print how each runtime would sample a diffusers folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from textwrap import wrap

from rich.console import Console

from halfstep.cli.console.columns import Columns, print_wide
from halfstep.cli.console.next_command import beside, say_next
from halfstep.cli.console.progress import say, terminal
from halfstep.cli.parse import parse
from halfstep.config.fields import flat
from halfstep.errors import printable
from halfstep.workflows.grid import differs, Grid, grid, GridConfig, Walk

ACROSS = 8
"""Network calls in a line of 80 columns."""


@dataclass(frozen=True, kw_only=True)
class GridOptions(GridConfig):
    """Print the timesteps and sigmas at which diffusers and ComfyUI would sample a diffusers folder."""

    json: bool = False
    """Print JSON instead of tables; an infinite sigma is null."""


def main(argv: Sequence[str]) -> int:
    """Print the walks, those that are the same together, and where the others part."""
    console = terminal()
    options = flat(parse(GridOptions, argv, prog="halfstep grid"))
    as_json = options.pop("json")
    result = grid(GridConfig(**options))
    if as_json:
        console.print(json.dumps(_plain(result), indent=2), soft_wrap=True)
        return 0
    if result.pipeline:
        say(console, "pipeline", result.pipeline)
    say(console, "scheduler", result.scheduler)
    say(console, "levels", f"{result.schedule}; the network predicts {result.prediction_type}")
    counts = list(dict.fromkeys(walk.steps for walk in result.walks))
    say(console, "steps", f"{', '.join(map(str, counts))}, {result.steps_from}")
    for steps in counts:
        console.print(f"\n{steps} step{'s' * (steps > 1)}", style="bold")
        groups = result.groups(steps)
        for k, group in enumerate(groups, start=1):
            _print_group(console, k, group, groups[0][0])
    if result.pipeline:
        folder = options["folder"]
        say_next(
            console, "sample", folder, "--steps", counts[0], "--out", beside(folder, "samples")
        )
    else:
        say_next(console, "grid", options["folder"], "--json")
    return 0


def _print_group(console: Console, k: int, group: Sequence[Walk], first: Walk) -> None:
    """Print the runtimes that share a walk, their notes, and its numbers."""
    console.print()
    for walk in group:
        _paragraph(console, f"{k if walk is group[0] else ' '}  {walk.runtime}", hang=3)
        for note in walk.notes:
            _paragraph(console, f"   - {note}", hang=5)
    if parts := differs(first, group[0]):
        _paragraph(console, f"   not as 1: {parts}", hang=3)
    last = len(group[0].sigmas) - 1
    starts = range(0, max(last, 1), ACROSS)
    for start in starts:
        end = last + 1 if start == starts[-1] else start + ACROSS
        print_wide(console, _table(group[0], range(start, end)))


def _paragraph(console: Console, text: str, *, hang: int) -> None:
    """Print lines of 80 columns, with an indent from the second on."""
    for line in wrap(printable(text), 80, subsequent_indent=" " * hang):
        console.print(line, markup=False, soft_wrap=True)


def _table(walk: Walk, columns: Sequence[int]) -> Columns:
    """Some calls of a walk, a column each; the last column is where it ends."""
    calls = len(walk.timesteps)
    table = Columns("   call", *(str(k + 1) if k < calls else "end" for k in columns))
    labels = [f"{walk.timesteps[k]:.5g}" if k < calls else "" for k in columns]
    table.add_row("   timestep", *labels)
    table.add_row("   sigma", *(_number(walk.sigmas[k]) for k in columns))
    table.add_row("   alpha", *(_number(walk.alphas[k]) for k in columns))
    return table


def _number(value: float) -> str:
    """A level in seven characters."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.{3 if value < 1000 else 1}f}"


def _plain(result: Grid) -> dict[str, object]:
    """The result as JSON holds it."""
    walks = []
    for walk in result.walks:
        finite = {
            key: [value if isfinite(value) else None for value in getattr(walk, key)]
            for key in ("sigmas", "reached")
        }
        walks.append({**vars(walk), **finite, "levels": walk.levels})
    return {**vars(result), "walks": walks}
