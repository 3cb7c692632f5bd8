"""Options: frozen dataclasses are the command line, the TOML file and the saved configuration.

Command-line options override the file, and the file the defaults.
"""

import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from halfstep.cli.names import refuse_unknown
from halfstep.config.fields import all_options, arity, build, flat, Option, options_of, read_words
from halfstep.config.preset_files import preset
from halfstep.config.toml import from_file
from halfstep.config.validate import describe
from halfstep.errors import ConfigError, unknown
from halfstep.files import is_text

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The options of `kind` from the command line, on top of `--preset NAME` and `--config FILE`.

    A page of help is not made here: `halfstep.cli` prints the one that is shipped.
    """
    if odd := [word for word in argv if not is_text(word)]:
        raise ConfigError(f"{odd[0]!a} is not UTF-8: rename that file or folder")
    args, known = list(argv), options_of(kind)
    presets, configs = _taken(args, "--preset"), _taken(args, "--config")
    refuse_unknown([one.flag[2:] for one in known.values()], args, prog)
    words, rest = _split(known, args)
    values = dict[str, Any]()
    for path in (*map(preset, presets), *map(Path, configs)):
        values |= from_file(kind, path, words)
    values |= {name: _value(known[name], given) for name, given in words.items()}
    positional = [one for one in all_options(kind) if one.positional]
    values |= _positional(positional, rest, prog)
    missing = [one.flag for one in known.values() if one.required and one.name not in values]
    missing += [one.name.upper() for one in positional if one.required and one.name not in values]
    if missing:
        raise ConfigError(f"{prog} needs {' and '.join(missing)}; see {prog} --help")
    built: T = build(kind, values)
    _import_from_here(flat(built))
    return built


CODE = ("net", "teacher_net", "features", "recipe")
"""Options that may be package.module:function."""


def _import_from_here(options: Mapping[str, Any]) -> None:
    """Let options name functions of modules in the folder where the command is typed."""
    named = any(":" in str(options.get(name)) for name in CODE)
    if named and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _split(
    known: Mapping[str, Option], args: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The words of each option, and those that belong to none; an option given twice is the last one."""
    words, rest = dict[str, list[str]](), list[str]()
    current, room = rest, len(args)
    for at, arg in enumerate(args):
        if arg == "--":
            return words, [*rest, *args[at + 1 :]]
        if not arg.startswith("--"):
            current = current if room else rest
            current.append(arg)
            room -= 1
            continue
        flag, has_value, value = arg[2:].partition("=")
        name = flag.replace("-", "_")
        if name not in known:  # --no-NAME, which `refuse_unknown` has seen
            name, has_value, value = name.removeprefix("no_"), "=", f"no{has_value}{value}"
        current = words[name] = [value] if has_value else []
        takes = arity(known[name].type)
        room = len(args) if takes is None else takes - len(current)
    return words, rest


def _value(option: Option, words: Sequence[str]) -> Any:
    """What the words after an option mean."""
    if option.type is bool and list(words) in ([], ["no"]):
        return not words
    if not words and arity(option.type) == 1:
        raise ConfigError(f"{option.flag} needs a value after it: {describe(option.type)}")
    if Path in _members(option.type) and "" in words:
        raise ConfigError(f"{option.flag} is empty: write a folder's or file's name after it")
    try:
        value = read_words(option.type, words)
    except (ValueError, OverflowError):
        wanted = describe(option.type).replace("a table of names", "pairs of names")
        text = " ".join(words)
        raise ConfigError(f"{option.flag} takes {wanted}, got '{text}'") from None
    if typing.get_origin(option.type) is Literal and value not in typing.get_args(option.type):
        raise unknown(option.flag, value, map(str, typing.get_args(option.type)))
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    """The type and those that it is made of."""
    return (hint, *typing.get_args(hint))


def _positional(options: Sequence[Option], words: Sequence[str], prog: str) -> dict[str, Any]:
    """The values of the words that follow no option."""
    if odd := [word for word in words if word.startswith("-") and word != "-"]:
        raise ConfigError(f"there is no option {odd[0]}: {prog} --help lists them")
    values = dict[str, Any]()
    for option in options:
        takes = arity(option.type)
        own, words = (words, ()) if takes is None else (words[:takes], words[takes:])
        if "" in own:
            raise ConfigError(f"{option.name.upper()} is empty: write a folder's name")
        if own:
            values[option.name] = read_words(option.type, own)
    if words:
        raise ConfigError(f"{prog} does not take '{words[0]}'; see {prog} --help")
    return values


def _taken(args: list[str], flag: str) -> list[str]:
    """The values of a flag of every command, taken out of the arguments."""
    taken, rest = list[str](), iter(args[:])
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
        taken.append(value)
    return taken
