"""The scripts that complete commands, written anew from the declared options: `make pages`.

`halfstep completion SHELL` prints a file, so that a shell starts as fast as before.
"""

import argparse
import typing
from pathlib import Path

import shtab

from halfstep.cli import ALONE, COMPLETION, SHELLS, VERBS
from halfstep.config.fields import all_options, arity
from halfstep.config.preset_files import preset_names
from tests.cli.help_pages import documented, KINDS

PLACES = ("data", "held_out", "teacher", "validate", "teacher_config", "model", "init")
"""Options of text that may be a file or folder."""


def script(shell):
    """The script for a shell."""
    return shtab.complete(parser(), shell)


def parser():
    """All commands as argparse declares them; it parses nothing."""
    top = argparse.ArgumentParser(prog="halfstep", add_help=False)
    top.add_argument("--help", action="store_true", help="list the verbs")
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers()
    for verb, (does, kinds) in VERBS.items():
        added = verbs.add_parser(verb, help=does, add_help=False)
        if not kinds or verb in ALONE:
            _fill(added, verb)
        if not kinds:
            continue
        inner = added.add_subparsers()
        for kind, text in kinds.items():
            _fill(inner.add_parser(kind, help=text, add_help=False), f"{verb} {kind}")
    return top


def _fill(added, command):
    for option in all_options(KINDS[command]):
        _add(added, option)
    presets = preset_names(f"halfstep {command}")
    if presets:
        added.add_argument("--preset", choices=presets, help="options that come with halfstep")
    config = added.add_argument("--config", help="options from a TOML file")
    config.complete = shtab.FILE
    added.add_argument("--help", action="store_true", help="print all options")


def _add(added, option):
    kinds = [option.type, *typing.get_args(option.type)]
    inner = [deep for kind in kinds for deep in (kind, *typing.get_args(kind))]
    choices = next(
        (typing.get_args(k) for k in kinds if typing.get_origin(k) is typing.Literal), None
    )
    text, names = documented(option).partition(". ")[0], [option.flag]
    if option.positional:
        argument = added.add_argument(option.name, nargs="?", choices=choices, help=text)
    elif option.type is bool:
        if option.default is True:
            names.append(f"--no-{option.flag[2:]}")
        argument = added.add_argument(*names, action="store_true", help=text)
    else:
        takes = "*" if arity(option.type) is None else arity(option.type)
        more = {} if takes == 1 else {"nargs": takes}
        argument = added.add_argument(*names, choices=choices, help=text, **more)
    if choices is None and (Path in inner or option.name in PLACES):
        argument.complete = shtab.FILE


def main() -> None:
    COMPLETION.mkdir(exist_ok=True)
    for shell in SHELLS:
        (COMPLETION / f"halfstep.{shell}").write_text(script(shell), encoding="utf-8")
        print(f"halfstep.{shell}")


if __name__ == "__main__":
    main()
