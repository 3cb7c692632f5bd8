"""Words of commands that several tests type, and the files that they leave."""

from pathlib import Path

import halfstep
from halfstep.cli import ALONE, main, VERBS

TINY = ["--net", "mlp", "--net-config", "width", "16", "depth", "1", "--data", "two-moons"]
POINTS = [
    *("train", "denoiser", "--data", "two-moons", "--net", "mlp"),
    *("--batch-size", "8", "--save-every", "2", "--log-every", "2"),
]
TRAIN = [*POINTS, "--updates", "4"]
SHIPPED = Path(halfstep.__file__).parent / "assets" / "digits-teacher"
COMMANDS = [
    f"{verb} {kind}".strip()
    for verb, (_, kinds) in VERBS.items()
    for kind in ([""] if not kinds or verb in ALONE else []) + list(kinds)
]
"""Every command: a verb, or a verb and its kind."""


def type_command(words):
    """The exit status of a command."""
    return main([str(word) for word in words])


def halving(teacher, out, *words):
    """Halve a teacher of two moons from 8 steps, hardly trained."""
    start = ["--start", 8, "--updates", 5, "--samples", 64, "--save-every", 1]
    return ["distill", "progressive", "--teacher", teacher, "--data", "two-moons", *start,
            "--out", out, *words]  # fmt: skip


def contents(folder):
    """Name and bytes of each file in a folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
