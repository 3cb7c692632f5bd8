"""`halfstep train denoiser`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.progress import reading, say, terminal
from halfstep.cli.console.run_lines import (
    as_typed,
    carried_out,
    describe,
    describe_data,
    own_net,
    updates_on,
)
from halfstep.cli.console.run_plan import rehearse
from halfstep.cli.parse import parse
from halfstep.workflows.train_denoiser import prepare_denoiser, TrainDenoiserConfig


def main(argv: Sequence[str]) -> int:
    """Train a teacher; print where it is."""
    console = terminal()
    config = parse(TrainDenoiserConfig, argv, prog="halfstep train denoiser")
    where = config.where
    with reading(console, config.source.data) as progress:
        prepared = prepare_denoiser(config, progress=progress)
    if where.dry_run:
        return rehearse(console, config, prepared.run)
    say(console, "network", describe(prepared.pipeline))
    say(console, "data", describe_data(config.source, prepared.data))
    say(console, "updates", updates_on(config.method.updates, config.training, where.device))
    with carried_out(where, config, console) as job:
        prepared.run(job)
    _print(console, config)
    return 0


def _print(console: Console, config: TrainDenoiserConfig) -> None:
    """The teacher's place, and commands that sample and distil it."""
    where = config.where
    out, net = shlex.quote(str(where.out)), own_net(config.network.net)
    distil = f"halfstep distill progressive --teacher {out}{net} {as_typed(config.source)}"
    say(console, "teacher", where.out / "stages" / "teacher")
    say(console, "look", f"halfstep sample {out} --out {out}/samples{net}")
    say(console, "next", f"{distil} --out STUDENT")
