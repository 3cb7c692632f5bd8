"""A run is a folder: what was asked, what was measured, the finished stages, the last checkpoints.

    RUN/run.json        command, resolved options, versions, and what changed of them
    RUN/metrics.jsonl   one line every few updates
    RUN/stages/NAME/    each finished stage's student, a pipeline of its own; stage.json says its updates
    RUN/checkpoints/    where the present stage goes on

The same command again goes on where it stopped.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict

from halfstep import files, storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.schema import from_json, known, Wrong
from halfstep.training import checkpoint
from halfstep.training.asked import begun, environment, refuse_others, take_up

BEFORE = (files.LOCK, "run.json")
"""What a run leaves, whole or as a temporary file, that was killed before it began."""
ALONE = ("run.json", "metrics.jsonl", "config.toml", "gate.json")
"""What nobody writes but the process that holds the lock."""


class Run:
    """An open run folder.  Other processes are kept out by a lock that dies with us.

    id  what its stages and checkpoints have in them; "" where another process writes them
    """

    def __init__(self, folder: Path, lock: files.Lock | None, notes: list[str], id: str = ""):
        self.folder, self._lock, self.notes, self.id = folder, lock, notes, id
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
        asked = _asked(command, options)
        try:
            _refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock = files.Lock(folder)
        except OSError as error:
            raise ConfigError(
                f"'{folder}' cannot be a run's folder ({error.strerror}): choose another --out"
            ) from None
        try:
            notes = lock.notes + take_up(
                folder, asked, environment(device, processes), extend=extend
            )
            run = cls(folder, lock, notes, begun(folder)["id"])
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
        self.check()
        stages, final = files.subfolder(self.folder, "stages"), self.stage(name)
        part, old = final.with_name(f".{name}.part"), final.with_name(f".{name}.old")
        with files.writing(final):
            files.remove(part)
            part.mkdir()
            write(part)
            held = {path.name: storage.checksum(path) for path in sorted(part.glob("*.json"))}
            own = {"run": self.id, "stage": name, "files": held}
            storage.write_json(part / "stage.json", {**about, **own})
            self._check_again(part)
            if final.exists():
                final.replace(old)
            part.replace(final)
            files.flush_folder(stages)
        files.remove(old)

    def finished(self, name: str) -> Mapping[str, int | float] | None:
        """A finished stage's updates, seconds and forwards; None if it is not finished."""
        if not self.stage(name).exists():
            return None
        about = read_stage(self.folder, name)
        return {k: about[k] for k in ("updates", "seconds", "forwards")}

    def record(self, name: str) -> None:
        """See to it that metrics.jsonl has the line of a finished stage."""
        lines = read_metrics(self.folder)
        if not any(line["stage"] == name and "updates" in line for line in lines):
            self.log({"stage": name, **(self.finished(name) or {})})

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; a measure that is not finite is null there."""
        self.check()
        files.append(self._metrics, json.dumps(_finite(line)) + "\n")

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
        files.tidy(self.folder, *ALONE)
        for place in (self.checkpoints, stages := self.folder / "stages"):
            files.refuse_link(place)
        checkpoint.tidy(self.checkpoints)
        with files.writing(stages):
            for old in stages.glob(".*.old"):
                final = stages / old.name[1 : -len(".old")]
                if not final.exists():  # gone between the two renames
                    old.replace(final)
        for left in stages.glob(".*"):
            files.remove(left)

    def check(self) -> None:
        """`CheckpointError` where the folder went away, or is another run's by now."""
        if self._lock is not None:
            self._lock.check()

    def _check_again(self, part: Path) -> None:
        """As `check`; a folder that was made anew, because a part was written where there was none, goes."""
        try:
            self.check()
        except CheckpointError:
            files.remove(part)
            with suppress(OSError):
                part.parent.rmdir()  # which only empty folders suffer
                self.folder.rmdir()
            raise

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()


class _Stage(TypedDict):
    """What stage.json says: the sums, whose it is, and sha256 of the other json beside it."""

    updates: int
    seconds: float
    forwards: float
    run: str
    stage: str
    files: dict[str, str]


def read_stage(run: Path, name: str) -> _Stage:
    """What a finished stage says of itself; `CheckpointError` where it is another's, or another run's.

    So is one with files of another stage: the names and sha256 of all json are in it, and those hold that
    of the weights.
    """
    folder = run / "stages" / name
    about = storage.read_json(folder / "stage.json", _Stage)
    if about["run"] != begun(run)["id"]:
        raise CheckpointError(
            f"'{folder}' is a stage of another run than '{run}': put its own there"
        )
    if about["stage"] != name:
        raise CheckpointError(f"'{folder}' holds the stage '{about['stage']}': put its own there")
    for file, sha256 in about["files"].items():
        if storage.checksum(folder / Path(file).name) != sha256:
            raise CheckpointError(
                f"'{folder / file}' is not the one that was written with '{folder / 'stage.json'}': put its "
                "own there"
            )
    return about


class _Line(TypedDict):
    """What every line of a stage's updates has, besides what its objective measures."""

    stage: str
    update: int
    loss: float
    norm: float
    rate: float


class _Done(TypedDict):
    """The line of a finished stage."""

    stage: str
    updates: int
    seconds: float
    forwards: float


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with storage.reading(path):
        *whole, _ = path.read_bytes().split(b"\n")
    return [_line(line, f"line {k} of '{path}'") for k, line in enumerate(whole, start=1)]


def _line(text: bytes, source: str) -> dict[str, Any]:
    try:
        content = from_json(text, dict[str, Any], source)
        return known(content, _Done if "updates" in content else _Line)
    except Wrong as wrong:
        raise CheckpointError(f"{source} is damaged: {wrong}; mend or remove the line") from None
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; mend or remove the line") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def refuse_folder(
    folder: Path, command: str, options: Mapping[str, Any], *, extend: bool = False
) -> None:
    """`ConfigError` where `Run.open` would refuse this folder, as a rehearsal asks: nothing is made."""
    try:
        _refuse_foreign(folder)
        held = os.path.lexists(folder / files.LOCK)
        with files.Lock(folder) if held else nullcontext():
            refuse_others(folder, _asked(command, options), extend=extend)
            for stage in sorted(folder.glob("stages/[!.]*")):
                read_stage(folder, stage.name)
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot be a run's folder ({error.strerror}): choose another --out"
        ) from None


def _asked(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says of them."""
    return {"command": command, "options": json.loads(json.dumps(options))}


def _refuse_foreign(folder: Path) -> None:
    """Before anything is written into it."""
    if folder.exists() and not (folder / "run.json").exists():
        strange = [path.name for path in folder.iterdir() if not files.is_ours(path.name, *BEFORE)]
        if strange:
            raise ConfigError(
                f"'{folder}' is not empty and holds no run (it has '{min(strange)}'): choose another "
                "--out"
            )
