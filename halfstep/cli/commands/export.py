"""`halfstep export`: write a student alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated


from halfstep.cli.options import parse
from halfstep.cli.progress import say, terminal
from halfstep.config.fields import POSITIONAL
from halfstep.workflows.export import export, ExportConfig


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a student alone into a folder: its weights, how it is sampled, and a README."""

    student: Annotated[Path, POSITIONAL]
    """A run, one of its stages, a student's folder, or a classifier's."""
    out: Path
    """A new folder."""
    config: ExportConfig = field(default_factory=ExportConfig)


def main(argv: Sequence[str]) -> int:
    """Write, and print how far the written student is from the original."""
    console = terminal()
    options = parse(Export, argv, prog="halfstep export")
    exported = export(options.student, options.out, **vars(options.config))
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
