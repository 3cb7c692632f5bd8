"""A run is a folder: what was asked, what was measured, the finished stages, the last checkpoints.

    RUN/run.json        command, resolved options, versions
    RUN/metrics.jsonl   one line every few updates
    RUN/stages/NAME/    each finished stage's student, a pipeline of its own
    RUN/checkpoints/    where the present stage goes on

The same command again goes on where it stopped.
"""

import fcntl
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, IO

import numpy as np
import torch

import halfstep
from halfstep import storage
from halfstep.errors import ConfigError

EXTENDABLE = ("stop", "updates")


class Run:
    """An open run folder.  Other processes of the same user are kept out by a lock that dies with us."""

    def __init__(self, folder: Path, lock: IO[str] | None, notes: list[str]):
        self.folder, self._lock, self.notes = folder, lock, notes
        self.checkpoints = folder / "checkpoints"

    @classmethod
    def open(
        cls,
        folder: Path,
        command: str,
        options: Mapping[str, Any],
        *,
        device: str = "cpu",
        extend: bool = False,
        writer: bool = True,
    ) -> "Run":
        """Make the folder, or take up the one that is there if it was made with the same options.

        `extend` allows more updates or further halvings.  `notes` names what changed in versions, device
        or threads since the run began: the weights are then not the same to the bit.
        """
        if not writer:
            return cls(folder, None, [])
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        asked = {"command": command, "options": json.loads(json.dumps(options))}
        here = environment(device)
        notes: list[str] = []
        if (folder / "run.json").exists():
            before = storage.read_json(folder / "run.json")
            _compare(folder, before, asked, extend)
            notes = _changed(before["environment"], here)
        elif any(p.name != ".lock" for p in folder.iterdir()):
            raise ConfigError(f"'{folder}' is not empty and holds no run: choose another --out")
        about = {**asked, "argv": sys.argv, "environment": here, "changes": notes}
        if not notes or extend or not (folder / "run.json").exists():
            storage.write_json(folder / "run.json", about)
        return cls(folder, lock, notes)

    def stage(self, name: str) -> Path:
        """The folder of a finished stage; it exists only when it is whole."""
        return self.folder / "stages" / name

    def finish(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder, then give it the stage's name: all or nothing."""
        final = self.stage(name)
        part = final.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
        storage.flush_folder(final.parent)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def updates_of(self, stage: str) -> int:
        """With how many updates a stage was finished; 0 if it was not."""
        lines = read_metrics(self.folder)
        return max(
            (x["updates"] for x in lines if x["stage"] == stage and "updates" in x), default=0
        )

    def forget_after(self, stage: str, update: int) -> None:
        """Drop the metrics of updates that are about to be done again."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = [
            line
            for line in read_metrics(self.folder)
            if line.get("stage") != stage
            or (line.get("update", 0) <= update and "updates" not in line)
        ]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(path)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def environment(device: str) -> dict[str, Any]:
    """What the bits of a result depend on besides the options."""
    return {
        "halfstep": halfstep.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    here = Path(halfstep.__file__).parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def _lock(folder: Path) -> IO[str]:
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"another process is working on '{folder}': wait for it, or choose another --out"
        ) from None
    return lock


def _compare(
    folder: Path, before: Mapping[str, Any], asked: Mapping[str, Any], extend: bool
) -> None:
    if before.get("command") != asked["command"]:
        raise ConfigError(
            f"'{folder}' holds a run of '{before.get('command')}', not of '{asked['command']}': "
            "choose another --out"
        )
    old, new = before["options"], asked["options"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not (extend and name in EXTENDABLE):
            hint = "add --extend, or " if name in EXTENDABLE else ""
            raise ConfigError(
                f"'{folder}' was made with {name} = {old.get(name)}, now it is {new.get(name)}: "
                f"{hint}choose another --out, or delete the folder"
            )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)}, now {now[name]}"
        for name in now
        if name != "commit" and before.get(name) != now[name]
    ]
