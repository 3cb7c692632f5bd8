"""Parse options: a frozen dataclass declares the command line, the TOML file and the saved configuration.

Command-line options override the file, and the file the defaults.
"""

import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from halfstep.cli.names import refuse_unknown
from halfstep.config.fields import (
    all_options,
    arity,
    build,
    flat,
    Option,
    options_of,
    OptionValues,
    read_words,
)
from halfstep.config.preset_files import preset
from halfstep.config.toml import from_file
from halfstep.config.validate import describe
from halfstep.errors import ConfigError, unknown
from halfstep.files import is_text

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str) -> T:
    """The options of `kind` from the command line, on top of `--preset NAME` and `--config FILE`.

    Help pages are not made here: `halfstep.cli` prints the shipped ones.
    """
    if odd := [word for word in argv if not is_text(word)]:
        raise ConfigError(f"{odd[0]!a} is not UTF-8: rename that file or folder")
    args, options = list(argv), options_of(kind)
    presets, configs = _take_flag(args, "--preset"), _take_flag(args, "--config")
    refuse_unknown([option.flag[2:] for option in options.values()], args, prog)
    words, unnamed = _split(options, args)
    values = OptionValues()
    for path in (*map(preset, presets), *map(Path, configs)):
        values |= from_file(kind, path, words)
    values |= {name: _value(options[name], texts) for name, texts in words.items()}
    positional = [option for option in all_options(kind) if option.positional]
    values |= _positional(positional, unnamed, prog)
    missing = [o.flag for o in options.values() if o.required and o.name not in values]
    missing += [o.name.upper() for o in positional if o.required and o.name not in values]
    if missing:
        raise ConfigError(f"{prog} needs {' and '.join(missing)}; see {prog} --help")
    built: T = build(kind, values)
    _add_folder_to_path(flat(built))
    return built


CODE = ("net", "teacher_net", "features", "recipe", "recipes")
"""Options that may be package.module:function."""


def _add_folder_to_path(options: OptionValues) -> None:
    """Let options name functions of modules in the current folder."""
    named = any(":" in str(options.get(name)) for name in CODE)
    if named and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _split(
    options: Mapping[str, Option], args: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """The words of each option, and the positional ones; of an option typed twice the last one counts."""
    words, unnamed = dict[str, list[str]](), list[str]()
    current, room = unnamed, len(args)
    for k, arg in enumerate(args):
        if arg == "--":
            return words, [*unnamed, *args[k + 1 :]]
        if not arg.startswith("--"):
            current = current if room else unnamed
            current.append(arg)
            room -= 1
            continue
        flag, has_value, value = arg[2:].partition("=")
        name = flag.replace("-", "_")
        if name not in options:  # --no-NAME, which `refuse_unknown` allows
            name, has_value, value = name.removeprefix("no_"), "=", f"no{has_value}{value}"
        current = words[name] = [value] if has_value else []
        takes = arity(options[name].type)
        room = len(args) if takes is None else takes - len(current)
    return words, unnamed


def _value(option: Option, words: Sequence[str]) -> Any:
    """The value of an option from the words after it."""
    if option.type is bool and list(words) in ([], ["no"]):
        return not words
    if not words and arity(option.type) == 1:
        raise ConfigError(f"{option.flag} needs a value after it: {describe(option.type)}")
    if Path in (option.type, *typing.get_args(option.type)) and "" in words:
        raise ConfigError(f"{option.flag} is empty: write a folder's or file's name after it")
    try:
        value = read_words(option.type, words)
    except (ValueError, OverflowError):
        expected = describe(option.type).replace("a table of names", "pairs of names")
        text = " ".join(words)
        raise ConfigError(f"{option.flag} takes {expected}, got '{text}'") from None
    if typing.get_origin(option.type) is Literal and value not in typing.get_args(option.type):
        raise unknown(option.flag, value, map(str, typing.get_args(option.type)))
    return value


def _positional(options: Sequence[Option], words: Sequence[str], prog: str) -> OptionValues:
    """The values of positional options."""
    if odd := [word for word in words if word.startswith("-") and word != "-"]:
        raise ConfigError(f"there is no option {odd[0]}: {prog} --help lists them")
    values = OptionValues()
    for option in options:
        takes = len(words) if (count := arity(option.type)) is None else count
        texts, words = words[:takes], words[takes:]
        if "" in texts:
            raise ConfigError(f"{option.name.upper()} is empty: write a folder's name")
        if texts:
            values[option.name] = read_words(option.type, texts)
    if words:
        raise ConfigError(f"{prog} does not take '{words[0]}'; see {prog} --help")
    return values


def _take_flag(args: list[str], flag: str) -> list[str]:
    """Remove a flag of every command from the arguments; return its values."""
    values, remaining = list[str](), iter(args[:])
    args.clear()
    for argument in remaining:
        if argument == flag:
            value = next(remaining, "")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            args.append(argument)
            continue
        if not value:
            raise ConfigError(f"{flag} needs a {'name' if flag == '--preset' else 'file'} after it")
        values.append(value)
    return values
