"""Which part of a sample is its image, its label and its text: chosen by name, or by the place's suffix.

A place may end in `:image=NAME,label=NAME,text=NAME`, each optional: columns of a table, or extensions in
tar shards.
"""

import re
from collections.abc import Sequence
from typing import Any

from halfstep.config.validate import shown
from halfstep.errors import ConfigError, DataError

ROLES = ("image", "label", "text")
NAMES = {
    "image": ("image",),
    "label": ("label", "labels", "cls", "class"),
    "text": ("text", "caption"),
}
"""The names by which a role is known."""
SUFFIX = re.compile(r"(?P<place>.+?):(?P<columns>(?:image|label|text)=.*)", re.DOTALL)

NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """The place, and the columns that its suffix names; `ConfigError` for another suffix."""
    if (match := SUFFIX.fullmatch(spec)) is None:
        return spec, {}
    columns = dict[str, str]()
    for part in match["columns"].split(","):
        role, _, name = part.partition("=")
        if role not in ROLES or not name or role in columns:
            raise ConfigError(
                f"'{part}' in '{spec}' names no column: write for example "
                f"{match['place']}:image=jpg,label=cls"
            )
        columns[role] = name
    return match["place"], columns


def chosen(role: str, candidates: Sequence[str], place: object) -> str | None:
    """The candidate for this role: the only one, or the one of several that has the usual name.

    None without a candidate; `DataError` names the candidates where the choice is open.
    """
    usual = [name for name in candidates if name.lower() in NAMES[role]]
    for names in (candidates, usual):
        if len(names) == 1:
            return names[0]
    return refuse(role, candidates, place) if candidates else None


def refuse(role: str, candidates: Sequence[str], place: object) -> str:
    """Raise the `DataError` for several candidates."""
    raise DataError(
        f"{place} has the {role}s {', '.join(candidates)}: write {place}:{role}={candidates[0]}, or another"
    )


def classes_of(values: Sequence[Any], place: object) -> tuple[list[int] | None, tuple[str, ...]]:
    """Labels and class names of what a column holds: whole numbers, or names of classes.

    Names are sorted by code point; None is a sample without a label, -1; no labels if all are None.
    """
    known = [value for value in values if value is not None]
    if (other := next((v for v in known if not isinstance(v, int | str)), None)) is not None:
        raise DataError(
            f"{place} has the label {shown(other)}, expected whole numbers or names of classes: write those"
        )
    if not known:
        return None, ()
    if not all(isinstance(value, int) or NUMBER.fullmatch(value) for value in known):
        names = tuple(sorted(set(map(str, known))))
        number = {name: k for k, name in enumerate(names)}
        return [-1 if value is None else number[str(value)] for value in values], names
    labels = [-1 if value is None else int(value) for value in values]
    if not -1 <= min(labels) <= max(labels) < 2**63:
        raise DataError(
            f"{place} has labels from {min(labels)} to {max(labels)}: number the classes from 0 on"
        )
    return labels, ()
