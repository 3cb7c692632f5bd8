"""`halfstep export`: write a student alone."""

from collections.abc import Sequence

from halfstep.cli.console.progress import say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.export import export, ExportConfig


def main(argv: Sequence[str]) -> int:
    """Write, and print how far the written student is from the original."""
    console = terminal()
    exported = export(**vars(parse(ExportConfig, argv, prog="halfstep export")))
    of = f"on {exported.compared} of the same noise"
    if exported.difference == 0:
        say(console, "the same", f"to the bit, {of}")
    else:
        say(console, "differs", f"by {exported.difference:.2e} (rms), {of}")
    if exported.batch is not None:
        say(console, "batch", exported.batch)
    for path in exported.files:
        say(console, "written", f"{path} ({path.stat().st_size:,} bytes)")
    return 0
