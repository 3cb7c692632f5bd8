"""A run is a folder: what was asked, what was measured, the finished stages, the last checkpoints.

    RUN/run.json        command, resolved options, versions, and what changed of them
    RUN/metrics.jsonl   one line every few updates
    RUN/stages/NAME/    each finished stage's student, a pipeline of its own; stage.json says its updates
    RUN/checkpoints/    where the present stage goes on

The same command again goes on where it stopped.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, IO

from halfstep import storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.training import checkpoint
from halfstep.training.asked import environment, take_up

OURS = (".lock", "run.json.part")
"""What a run leaves that was killed before it began."""


class Run:
    """An open run folder.  Other processes are kept out by a lock that dies with us."""

    def __init__(self, folder: Path, lock: IO[str] | None, notes: list[str]):
        self.folder, self._lock, self.notes = folder, lock, notes
        self.checkpoints = folder / "checkpoints"
        self._metrics = folder / "metrics.jsonl"

    @classmethod
    def open(
        cls,
        folder: Path,
        command: str,
        options: Mapping[str, Any],
        *,
        device: str = "cpu",
        processes: int = 1,
        extend: bool = False,
    ) -> "Run":
        """Make the folder, or take up the one that is there if it was made with the same options.

        `extend` allows more updates or further halvings.  `notes` names what changed in versions, device
        or threads since the run began: the weights are then not the same to the bit.
        """
        asked = {"command": command, "options": json.loads(json.dumps(options))}
        try:
            _refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock, notes = _lock(folder)
        except OSError as error:
            raise ConfigError(
                f"'{folder}' cannot be a run's folder ({error.strerror}): choose another --out"
            ) from None
        try:
            notes += take_up(folder, asked, environment(device, processes), extend=extend)
            run = cls(folder, lock, notes)
            run._mend()
        except BaseException:
            lock.close()
            raise
        return run

    def stage(self, name: str) -> Path:
        """The folder of a finished stage; it exists only when it is whole."""
        return self.folder / "stages" / name

    def finish(
        self, name: str, write: Callable[[Path], None], about: Mapping[str, int | float]
    ) -> None:
        """Let `write` fill a folder, then give it the stage's name: all or nothing.

        about  updates, seconds and forwards, for stage.json
        """
        final = self.stage(name)
        part, old = final.with_name(f".{name}.part"), final.with_name(f".{name}.old")
        with storage.writing(final):
            shutil.rmtree(part, ignore_errors=True)
            write(part)
            storage.write_json(part / "stage.json", about)
            if final.exists():
                final.replace(old)
            part.replace(final)
            storage.flush_folder(final.parent)
        shutil.rmtree(old, ignore_errors=True)

    def finished(self, name: str) -> Mapping[str, int | float] | None:
        """A finished stage's updates, seconds and forwards; None if it is not finished."""
        folder = self.stage(name)
        if not folder.exists():
            return None
        about = storage.read_json(folder / "stage.json")
        if not isinstance(about.get("updates"), int):
            raise CheckpointError(f"'{folder / 'stage.json'}' is damaged: it has no updates")
        return about

    def record(self, name: str) -> None:
        """See to it that metrics.jsonl has the line of a finished stage."""
        lines = read_metrics(self.folder)
        if not any(line["stage"] == name and "updates" in line for line in lines):
            self.log({"stage": name, **(self.finished(name) or {})})

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with storage.writing(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, stage: str, update: int) -> None:
        """Drop the metrics of updates that are about to be done again."""
        lines = read_metrics(self.folder)
        kept = [
            line
            for line in lines
            if line["stage"] != stage or ("updates" not in line and line["update"] <= update)
        ]
        if len(kept) < len(lines):
            storage.write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def _mend(self) -> None:
        """Remove what a crash left half done, down to a last line that was cut short."""
        if self._metrics.exists() and self._metrics.read_bytes()[-1:] not in (b"", b"\n"):
            lines = read_metrics(self.folder)
            storage.write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))
        checkpoint.tidy(self.checkpoints)
        stages = self.folder / "stages"
        for old in stages.glob(".*.old"):
            final = stages / old.name[1 : -len(".old")]
            if not final.exists():  # gone between the two renames
                old.replace(final)
        for left in stages.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _refuse_foreign(folder: Path) -> None:
    """Before anything is written into it."""
    if folder.exists() and not (folder / "run.json").exists():
        strange = [path.name for path in folder.iterdir() if path.name not in OURS]
        if strange:
            raise ConfigError(
                f"'{folder}' is not empty and holds no run (it has '{min(strange)}'): choose another "
                "--out"
            )


def _lock(folder: Path) -> tuple[IO[str], list[str]]:
    """The locked file; and a note where the file system knows no locks."""
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"another process is working on '{folder}': wait for it, or choose another --out"
        ) from None
    except OSError as error:
        return lock, [f"this file system has no locks ({error.strerror}): start no second process"]
    return lock, []
