"""The folder of a run, to be read: its options, its finished stages, its students, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halfstep.errors import ConfigError
from halfstep.identity import digest_of
from halfstep.methods.shrink import SHRUNK
from halfstep.pipeline import Pipeline
from halfstep.pipeline.description import read_description
from halfstep.timegrids import grid
from halfstep.training.asked import Begun, begun
from halfstep.training.gate_record import GateRecord, read_gate
from halfstep.training.run import read_metrics, read_stage
from halfstep.training.run_config import read_config


@dataclass(frozen=True)
class RunFolder:
    """A run that was begun, finished or not; `RunFolder.open` reads run.json and config.toml.

    config  what was typed, as config.toml has it; {} of a run that was begun from Python
    about   command, resolved options, environment and changes, as run.json has them
    """

    folder: Path
    config: Mapping[str, Any]
    about: Begun

    @classmethod
    def open(cls, folder: Path) -> "RunFolder":
        """`ConfigError` where there is no run, `CheckpointError` where its files are damaged."""
        if not (folder / "run.json").exists():
            raise ConfigError(
                f"'{folder}' holds no run: give the --out of a 'halfstep train' or 'halfstep distill'"
            )
        return cls(folder, read_config(folder), begun(folder))

    @property
    def options(self) -> dict[str, Any]:
        """The options that the run was made with, resolved."""
        return self.about["options"]

    @property
    def stages(self) -> list[Path]:
        """Folders of the finished stages, the most steps first."""
        return stage_folders(self.folder)[::-1]

    def stage(self, name: str, *, net: str | None = None) -> Pipeline | None:
        """The pipeline of a finished stage; None where no stage has this name."""
        found = [folder for folder in self.stages if folder.name == name]
        return Pipeline.load(found[0], net=net) if found else None

    @property
    def gate(self) -> GateRecord | None:
        """What the gate decided; None of a run without one."""
        path = self.folder / "gate.json"
        return read_gate(path) if path.exists() else None

    def student(self, steps: int | None = None, *, net: str | None = None) -> Pipeline:
        """The student of so many steps, by default of the fewest; with a gate, the last that passed.

        `ConfigError` where no student takes so many steps, or none passed the gate.
        """
        return load_student(self.folder, steps=steps, net=net)

    def first_student(self, *, net: str | None = None) -> Pipeline | None:
        """The stage that the halved students were made from: a guided run's first, or a plan's shrunk one."""
        return self.stage("guided", net=net) or self.stage(SHRUNK, net=net)

    def students(self, *, full: int = 64, net: str | None = None) -> list[Pipeline]:
        """All finished students, the most steps first; before the first halving, the first student.

        full  steps of a first student whose run says no other
        """
        loaded = [Pipeline.load(folder, net=net) for folder in self.stages]
        if halved := [pipeline for pipeline in loaded if pipeline.times]:
            return halved
        first = self.first_student(net=net)
        if first is None:
            return []
        kind, start = self.options.get("grid", "uniform"), self.options.get("start", full)
        return [replace(first, times=(grid(kind, start, first.denoiser.schedule),))]


def stage_folders(run: Path) -> list[Path]:
    """Folders of a run's finished stages with a pipeline, sorted; one that is another run's is refused."""
    found = sorted(path.parent for path in (run / "stages").glob("[!.]*/pipeline.json"))
    for folder in found if (run / "run.json").exists() else ():
        read_stage(run, folder.name)
    return found


def load_student(path: Path, *, steps: int | None = None, net: str | None = None) -> Pipeline:
    """A run's student of so many steps; by default of the fewest, or with a gate the last that passed."""
    found = stage_folders(path)
    if not found:
        raise ConfigError(
            f"'{path}' holds neither a pipeline nor a run with a finished stage: give the folder that "
            "has a pipeline.json, or the --out of a run"
        )
    takes = {folder: _takes(folder) for folder in found}
    if steps is None and (path / "gate.json").exists():
        return _load_best(path, net)
    if steps is None:
        return Pipeline.load(min(found, key=lambda folder: takes[folder][0]), net=net)
    for folder in found:
        if steps in takes[folder] or ANY in takes[folder]:
            return Pipeline.load(folder, net=net)
    own = sorted({n for counts in takes.values() for n in counts})
    raise ConfigError(
        f"no student of '{path}' was distilled for {steps} steps: they take "
        f"{' or '.join(map(str, own))}"
    )


def _load_best(path: Path, net: str | None) -> Pipeline:
    """The last stage that passed the run's gate, of the weights that the gate saw."""
    record = read_gate(path / "gate.json")
    tried = [one for one in record["tried"] if one["stage"] == record["best"]]
    if not tried:
        raise ConfigError(
            f"no student of '{path}' passed its gate: say which one you mean with steps (command line: "
            "--steps), or give the folder of a stage"
        )
    found = Pipeline.load(path / "stages" / tried[-1]["stage"], net=net)
    if digest_of(found.denoiser) != tried[-1]["weights"]:
        raise ConfigError(
            f"the gate of '{path}' saw other weights of {tried[-1]['stage']} than are there: run the same "
            "halfstep distill again, or say which student you mean with steps (command line: --steps)"
        )
    return found


ANY = 2**31
"""A teacher takes any number of steps, which counts as many."""


def _takes(folder: Path) -> list[int]:
    """The numbers of steps that a stage's pipeline can take."""
    about = read_description(folder)
    counts = [len(times) - 1 for times in about["times"]]
    if about.get("made_for") == "stochastic" and 2 in counts:
        counts.append(1)  # whose one call at t = 1 spans both
    return counts or [ANY]


def cost_of(run: Path) -> dict[str, Any] | None:
    """Seconds, forwards (a forward 1, forward and backward 3) and updates of all finished stages."""
    done = [line for line in read_metrics(run) if "forwards" in line]
    if not done:
        return None
    return {key: sum(line[key] for line in done) for key in ("seconds", "forwards", "updates")}


def losses_of(run: Path) -> list[dict[str, Any]]:
    """Loss and learning rate of every logged update, over all stages."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    return [{key: line[key] for key in ("stage", "update", "loss", "rate")} for line in lines]
