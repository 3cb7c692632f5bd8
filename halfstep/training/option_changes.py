"""Options that may change within a run: run.json has the update from which each value holds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from halfstep.config import JsonObject

CHANGEABLE = ("learning_rate", "log_every", "save_every", "samples_every")
"""Options that the same command may give another value, in the same run folder."""


class Place(NamedTuple):
    """An update of a run; places compare in the order of training.

    stage   number of the stage, from 0
    update  updates of the stage that are done
    """

    stage: int
    update: int


class OptionChange(TypedDict):
    """Values that hold from this place on, until the next change.

    name    of the stage
    values  of all changeable options of the run
    """

    stage: int
    name: str
    update: int
    values: JsonObject


def changeable(options: JsonObject) -> JsonObject:
    """The changeable ones of a run's options."""
    return {name: options[name] for name in CHANGEABLE if name in options}


def place_of(change: OptionChange) -> Place:
    """The place from which a change holds."""
    return Place(change["stage"], change["update"])


def value_at(name: str, begun: Any, changes: Sequence[OptionChange], place: Place) -> Any:
    """The value of an option at the update of this place.

    begun    the value that the run began with
    changes  in the order of training
    """
    value = begun
    for change in changes:
        if place_of(change) <= place:
            value = change["values"].get(name, value)
    return value


def changed(
    begun: JsonObject,
    changes: Sequence[OptionChange],
    values: JsonObject,
    place: Place,
    name: str,
) -> tuple[list[OptionChange], list[str]]:
    """The changes of a run that goes on at `place` with these values, and the new one in words.

    begun  changeable options that the run began with
    name   of the stage

    The values of the last command change nothing: a run that goes on before its last change makes the same
    changes again.  Other values hold from `place` on, and changes after it are forgotten.
    """
    last: Mapping[str, Any] = changes[-1]["values"] if changes else begun
    words = [
        f"{option} was {last.get(option)}, now {value}, from update {place.update:,} of {name} on"
        for option, value in values.items()
        if value != last.get(option)
    ]
    if not words:
        return list(changes), []
    before = [change for change in changes if place_of(change) < place]
    new: OptionChange = {
        "stage": place.stage, "name": name, "update": place.update, "values": {**last, **values}
    }  # fmt: skip
    return [*before, new], words
