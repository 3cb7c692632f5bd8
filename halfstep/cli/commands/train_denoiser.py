"""`halfstep train denoiser`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.progress import reading, say, terminal
from halfstep.cli.console.run_lines import (
    as_typed,
    describe,
    describe_data,
    net_option,
    run_context,
    updates_on,
)
from halfstep.cli.console.run_plan import plan_only
from halfstep.cli.parse import parse
from halfstep.workflows.train_denoiser import prepare_denoiser, TrainDenoiserConfig


def main(argv: Sequence[str]) -> int:
    """Train a teacher; print its folder."""
    console = terminal()
    config = parse(TrainDenoiserConfig, argv, prog="halfstep train denoiser")
    folder = config.folder
    with reading(console, config.dataset.data) as progress:
        prepared = prepare_denoiser(config, progress=progress)
    if folder.dry_run:
        return plan_only(console, config, prepared.run)
    say(console, "network", describe(prepared.pipeline))
    say(console, "data", describe_data(config.dataset, prepared.data))
    say(console, "updates", updates_on(prepared.method.updates, prepared.training, folder.device))
    with run_context(folder, config, console) as job:
        prepared.run(job)
    _print(console, config)
    return 0


def _print(console: Console, config: TrainDenoiserConfig) -> None:
    """Print the teacher's folder, and commands that sample and distil it."""
    folder = config.folder
    out, net = shlex.quote(str(folder.out)), net_option(config.network.net)
    distil = f"halfstep distill progressive --teacher {out}{net} {as_typed(config.dataset)}"
    say(console, "teacher", folder.out / "stages" / "teacher")
    say(console, "look", f"halfstep sample {out} --out {out}/samples{net}")
    say(console, "next", f"{distil} --out {shlex.quote(str(folder.out))}-student")
