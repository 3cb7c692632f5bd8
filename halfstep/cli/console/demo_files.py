"""The files of a demo, in the terminal."""

from pathlib import Path

from rich.console import Console

from halfstep.cli.console.progress import say

FILES = (("pictures", "samples.png"), ("", "quality.png"), ("numbers", "results.json"))


def say_files(console: Console, out: Path) -> None:
    """Print the paths of the pictures and numbers that were written."""
    for label, name in FILES:
        if (out / name).exists():
            say(console, label, out / name)
