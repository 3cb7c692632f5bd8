"""Options: frozen dataclasses are the command line, the TOML file and the saved configuration.

The command line wins over the file, the file over the defaults.
"""

import contextlib
import io
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tyro

from halfstep.cli.config import flat, from_file, options_of, preset, preset_names
from halfstep.errors import ConfigError
from halfstep.files import check_writable, is_text
from halfstep.kinds import Count, hold_to_kinds, word

T = TypeVar("T")
Flat = tyro.conf.arg(name="")
"""A nested dataclass whose fields appear without a prefix."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a run lives and how it is carried out."""

    out: Path
    """The run's folder; the same command again goes on where it stopped."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name: cpu, cuda:1."""
    extend: bool = False
    """Let the run in this folder have more updates, or halve further."""
    from_previous: bool = False
    """Go on from the checkpoint before a damaged one."""
    dry_run: bool = False
    """Print stages, updates, memory and time, and stop."""

    def check(self) -> None:
        """Refuse a folder that cannot be written, before anything is read."""
        check_writable(self.out, "choose another --out")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data."""

    data: str
    """digits, two-moons, fashion-mnist:FOLDER, cifar10:FOLDER, a folder of images, a .npy or .npz file, or
    a folder of latents."""
    size: Count | None = None
    """Side of the images in pixels."""
    channels: Count | None = None
    """1 for gray, 3 for colour."""
    flip: bool = False
    """Mirror half of the images, at random."""
    verify: bool = False
    """Of latents: compare the checksums of all files first, not of those alone that were written since."""


def parse(kind: type[T], argv: Sequence[str], *, prog: str, about: str = "") -> T:
    """The options of `kind` from the command line, on top of `--preset NAME` and `--config FILE`.

    about  what the command does, if the docstring of `kind` does not say
    """
    if odd := [word for word in argv if not is_text(word)]:
        raise ConfigError(f"{odd[0]!a} is not UTF-8: rename that file or folder")
    args, asked = list(argv), list[str]()
    presets, configs = _taken(args, "--preset"), _taken(args, "--config")
    for path in (*map(preset, presets), *map(Path, configs)):
        asked += from_file(kind, path, args)
    # Words that come first are no option's: they stay first, or a file's last list would take them in.
    first = next((k for k, word in enumerate(args) if word.startswith("-")), len(args))
    args = [*args[:first], *asked, *args[first:]]
    if not {"-h", "--help"} & set(args):
        _check_names(kind, args, prog)
    _refuse_empty(kind, args)
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            found = tyro.cli(
                kind, args=args, prog=prog, description=_description(kind, about, prog),
                config=(tyro.conf.OmitArgPrefixes,),
            )  # fmt: skip
        _hold(found)
        _import_from_here(flat(found))
        return found
    except SystemExit as left:
        if not left.code:
            raise  # help was asked for, and given
        said = _plain(kind, _sentence(caught.getvalue()), args)
        raise ConfigError(f"{said}; see {prog} --help") from None


def _hold(options: Any) -> None:
    """Every number that can be typed is finite and in its range, those of nested dataclasses too."""
    hold_to_kinds(options)
    for option in fields(options):
        if is_dataclass(inner := getattr(options, option.name)):
            _hold(inner)


CODE = ("net", "teacher_net", "features", "gate_features", "recipe")
"""Options that may be package.module:function."""


def _import_from_here(options: Mapping[str, Any]) -> None:
    """Let options name functions of modules in the folder where the command is typed."""
    named = any(":" in (options.get(name) or "") for name in CODE)
    if named and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _taken(args: list[str], flag: str) -> list[str]:
    """The values of a flag of our own, taken out of the arguments."""
    found, rest = list[str](), iter(args[:])
    args.clear()
    for argument in rest:
        if argument == flag:
            value = next(rest, "")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            args.append(argument)
            continue
        if not value:
            raise ConfigError(f"{flag} needs a {'name' if flag == '--preset' else 'file'} after it")
        found.append(value)
    return found


def _check_names(kind: Any, args: Sequence[str], prog: str) -> None:
    """Refuse an option that there is not, and the lack of one that there must be, by name."""
    options = {name.replace("_", "-"): must for name, _, must in options_of(kind)}
    given = set()
    for argument in args:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument[2:].partition("=")[0].replace("_", "-")
        name = name if name in options else name.removeprefix("no-")
        if name not in options:
            near = get_close_matches(name, [*options, "preset", "config"], n=1)
            hint = f"perhaps you meant --{near[0]}; " if near else ""
            raise ConfigError(
                f"there is no option {argument.partition('=')[0]}: {hint}{prog} --help lists them"
            )
        given.add(name)
    missing = [name for name, must in options.items() if must and name not in given]
    if missing:
        listed = " and ".join(f"--{name}" for name in missing)
        raise ConfigError(f"{prog} needs {listed}; see {prog} --help")


def _refuse_empty(kind: Any, args: Sequence[str]) -> None:
    """Refuse a folder or file without a name, as a shell leaves of a variable that is not set."""
    hints = {name.replace("_", "-"): hint for name, hint, _ in options_of(kind)}
    flag = ""
    for argument in args:
        if argument.startswith("--"):
            flag = argument[2:].partition("=")[0].replace("_", "-")
        empty = not argument or argument == f"--{flag}="
        if empty and Path in (hints.get(flag), *typing.get_args(hints.get(flag))):
            raise ConfigError(f"--{flag} is empty: write a folder's or file's name after it")


def _sentence(box: str) -> str:
    """The first part of tyro's box, below its title, as one line."""
    lines = [line.strip(" │") for line in box.splitlines()]
    parts = [list[str]()]
    for line in filter(None, lines):
        if line.strip("─-") and line[0] not in "╭╰":
            parts[-1].append(line)
        else:
            parts.append([])
    # Where the terminal has no box characters the title is a part of its own.
    body = parts[1:] if "╭" in box or len(parts) > 1 else parts
    return " ".join(body[0]).rstrip(".!")


def _plain(kind: Any, said: str, args: Sequence[str]) -> str:
    """tyro's sentence, in our words where it quotes Python's."""
    found = re.match(r"Error parsing --([\w-]+):", said)
    hints = {name.replace("_", "-"): hint for name, hint, _ in options_of(kind)}
    if found is None or found[1] not in hints:
        return said[:1].lower() + said[1:]
    wanted = word(hints[found[1]]).replace("a table of names", "pairs of names")
    return f"--{found[1]} takes {wanted}, got '{_given(found[1], args)}'"


def _given(name: str, args: Sequence[str]) -> str:
    """What was typed after an option, the last time that it was."""
    got, its = list[str](), False
    for argument in args:
        if argument.startswith("--"):
            head, _, tail = argument.partition("=")
            its = head.replace("_", "-") == f"--{name}"
            got = ([tail] if tail else []) if its else got
        elif its:
            got.append(argument)
    return " ".join(got)


def _description(kind: Any, about: str, prog: str) -> str:
    doc = about or (typing.get_origin(kind) or kind).__doc__ or ""
    presets = ", ".join(preset_names(prog))
    named = f"--preset NAME (here: {presets}) and " if presets else ""
    verb = "give" if presets else "gives"
    return (
        f"{doc}\n{named}--config FILE {verb} options from a TOML file; what is typed beside wins."
    )
