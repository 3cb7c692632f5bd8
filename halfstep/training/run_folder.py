"""The folder of a run, to be read: its options, its finished stages, its students, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halfstep.errors import ConfigError
from halfstep.methods.shrink import SHRUNK
from halfstep.pipeline import Pipeline
from halfstep.timegrids import grid
from halfstep.training.asked import Begun, begun
from halfstep.training.run import read_metrics, read_stage
from halfstep.training.run_config import read_config


@dataclass(frozen=True)
class RunFolder:
    """A run that was begun, finished or not; `RunFolder.open` reads its files once.

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
