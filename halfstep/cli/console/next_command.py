"""The command that a verb ends with: what to type next, with the user's own paths."""

import shlex
from pathlib import Path

from rich.console import Console

from halfstep.cli.console.progress import say
from halfstep.training.run_folder import RunFolder


def say_next(console: Console, *words: object) -> None:
    """Print a command, quoted for a shell; words in capitals stand for the user's own."""
    say(console, "next", shlex.join(["halfstep", *map(str, words)]))


def net_words(net: str | None) -> list[str]:
    """The option of a network of the user's own."""
    return ["--net", net] if net is not None and ":" in net else []


def beside(folder: Path, name: str) -> str:
    """A folder beside this one: runs/a and student give runs/a-student."""
    return f"{str(folder).rstrip('/')}-{name}"


def say_export(console: Console, run: Path, *, net: str | None = None) -> None:
    """The next command after an evaluation: export the best student."""
    say_next(console, "export", run, "--out", beside(run, "export"), *net_words(net))


def say_halving(console: Console, teacher: object, out: str, *, net: str | None = None) -> None:
    """The next command for a teacher: halve its steps."""
    words = "distill", "progressive", "--teacher", teacher, *net_words(net)
    say_next(console, *words, "--data", "DATA", "--start", 64, "--out", out)


def say_after_samples(
    console: Console, place: str | Path | None, *, net: str | None = None
) -> None:
    """After samples of a run of students: evaluate it; of another pipeline: halve its steps."""
    folder = Path(place or "TEACHER")
    if (folder / "run.json").exists() and RunFolder.open(folder).about["command"].startswith(
        "distill"
    ):
        say_next(console, "evaluate", folder, *net_words(net))
    else:
        say_halving(console, place or "TEACHER", beside(Path(folder.name), "student"), net=net)
