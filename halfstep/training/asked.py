"""What a run was begun with, against what is asked of it now."""

import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.version import __version__

EXTENDABLE = ("stop", "updates", "guided_updates", "halving_updates")
"""What --extend may raise (or halve further)."""
ROUNDING = ("micro_batch",)
"""What may change at any time, because out of memory asks for it: only sums are rounded otherwise."""


class Begun(TypedDict):
    """What run.json says: who began it, with what, and what changed since.

    id  stands in the run's stages and checkpoints, and in no other run's
    """

    command: str
    options: dict[str, Any]
    id: str
    argv: list[str]
    environment: dict[str, str | int | None]
    changes: list[str]


def begun(folder: Path) -> Begun:
    """What a run was begun with."""
    return storage.read_json(folder / "run.json", Begun)


def take_up(
    folder: Path, asked: Mapping[str, Any], here: Mapping[str, Any], *, extend: bool
) -> list[str]:
    """Compare with the run's own run.json, and write there what changed; returns it in words.

    asked  command and options
    here   `environment`
    """
    path, notes, changes = folder / "run.json", list[str](), list[str]()
    run, fresh = uuid.uuid4().hex, not path.exists()
    if not fresh:
        before = begun(folder)
        run = before["id"]
        free, extended = _compare(folder, before, asked, extend)
        notes = [*free, *_changed(before["environment"], here)]
        changes = [*before["changes"], *notes, *extended]
        fresh = bool(notes or extended)
    if fresh:
        about = {**asked, "id": run, "argv": sys.argv, "environment": here, "changes": changes}
        storage.write_json(path, about)
    return [f"{note}: from here on not the same to the bit" for note in notes]


def refuse_others(folder: Path, asked: Mapping[str, Any], *, extend: bool) -> None:
    """`ConfigError` where the folder holds a run that these command and options would not go on with."""
    if (folder / "run.json").exists():
        _compare(folder, begun(folder), asked, extend)


def _compare(
    folder: Path, before: Begun, asked: Mapping[str, Any], extend: bool
) -> tuple[list[str], list[str]]:
    """Refuse other options; returns in words what may differ anyhow, and what was extended."""
    if before["command"] != asked["command"]:
        raise ConfigError(
            f"'{folder}' holds a run of '{before['command']}', not of '{asked['command']}': "
            "choose another --out"
        )
    old, new = _flat(before["options"]), _flat(asked["options"])
    free, extended = list[str](), list[str]()
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        adds = name in EXTENDABLE and _adds(name, was, now)
        if name in ROUNDING:
            free.append(f"{name} was {was}, now {now}")
        elif adds and extend:
            extended.append(f"{name} was {was}, now {now}")
        else:
            hint = "add --extend, or " if adds else ""
            raise ConfigError(
                f"'{folder}' was made with {name} = {was}, now it is {now}: {hint}choose another "
                "--out, or delete the folder"
            )
    return free, extended


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """One level of nesting made part of the names: pipeline.schedule."""
    found = dict[str, Any]()
    for name, value in options.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found.update({f"{name}.{key}" if key else name: each for key, each in inner})
    return found


def _adds(name: str, was: Any, now: Any) -> bool:
    """Whether an option asks for more of the same: nothing that is done would be undone."""
    olds, news = (value if isinstance(value, list) else [value] for value in (was, now))
    if not all(isinstance(value, int) for value in (*olds, *news)):
        return False
    if name == "stop":
        return bool(news < olds)
    return all(new >= old for old, new in zip(olds, news, strict=False))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)}, now {now[name]}"
        for name in now
        if name != "commit" and before.get(name) != now[name]
    ]


def environment(device: str, processes: int = 1) -> dict[str, Any]:
    """What the bits of a result depend on besides the options."""
    return {
        "halfstep": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _commit() -> str | None:
    here = Path(__file__).parents[1]
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
