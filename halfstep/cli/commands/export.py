"""`halfstep export`: write a student into a folder of its own."""

from collections.abc import Sequence

from halfstep.cli.console.progress import say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.export import export
from halfstep.workflows.exported import ExportConfig


def main(argv: Sequence[str]) -> int:
    """Write the student; print its files, and its difference from the original."""
    console = terminal()
    exported = export(**vars(parse(ExportConfig, argv, prog="halfstep export")))
    samples = f"on {exported.compared} samples of the same noise"
    if exported.difference == 0:
        say(console, "the same", f"to the bit, {samples}")
    else:
        say(console, "differs", f"by {exported.difference:.2e} (rms), {samples}")
    for path in exported.files:
        say(console, "written", f"{path} ({path.stat().st_size:,} bytes)")
    return 0
