"""`halfstep export`: write a student into a folder of its own."""

from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.next_command import beside, net_words, say_next
from halfstep.cli.console.progress import say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.export import export
from halfstep.workflows.exported import ExportConfig


def main(argv: Sequence[str]) -> int:
    """Write the student; print its files, and its difference from the original."""
    console = terminal()
    config = parse(ExportConfig, argv, prog="halfstep export")
    exported = export(**vars(config))
    samples = f"on {exported.compared} samples of the same noise"
    of = "of the largest value" if exported.relative else "(rms)"
    if exported.difference == 0:
        say(console, "the same", f"to the bit, {samples}")
    else:
        say(console, "differs", f"by {exported.difference:.2e} {of}, {samples}")
    for path in exported.files:
        say(console, "written", f"{path} ({path.stat().st_size:,} bytes)")
    if exported.pushed is not None:
        say(console, "uploaded", exported.pushed)
    _say_next(console, config)
    return 0


def _say_next(console: Console, config: ExportConfig) -> None:
    """Use the student: sample from its folder, or see the grid of a folder of diffusers."""
    if (config.out / "pipeline.json").exists():
        words = "sample", config.out, "--out", beside(config.out, "samples")
        say_next(console, *words, *net_words(config.net))
    elif (config.out / "model_index.json").exists():
        say_next(console, "grid", config.out)
    else:
        say_next(console, "runs", config.run.parent)
