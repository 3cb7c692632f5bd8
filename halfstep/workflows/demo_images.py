"""The demo of real images: draw with students that the repository has, and show their stored scores."""

from dataclasses import dataclass, fields
from pathlib import Path

from halfstep import files, storage
from halfstep.errors import ConfigError
from halfstep.evaluation.report_data import Report
from halfstep.evaluation.report_files import read_report
from halfstep.hub.bundled import models_beside
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training.distributed import pick_device
from halfstep.workflows.demo import DemoConfig
from halfstep.workflows.demo_files import demo_results, draw_demo
from halfstep.workflows.report import save


@dataclass(frozen=True)
class ImagesDemo:
    """A teacher of real images, its students, and the report of them that was measured once.

    folder    of the students
    students  most steps first
    """

    config: DemoConfig
    folder: Path
    teacher: Pipeline
    students: list[Pipeline]
    report: Report

    def draw(self, *, progress: Progress = SILENT) -> Path:
        """Write samples.png, quality.png, results.json and the report into OUT; return OUT."""
        out = self.config.folder
        device = pick_device(self.config.device)
        for pipeline in (self.teacher, *self.students):
            pipeline.to(device)
        files.make_folder(out)
        draw_demo(out, self.teacher, self.students, self.report, progress=progress)
        storage.write_json(out / "results.json", demo_results(self.report))
        save(self.report, out)
        return out


def prepare_images_demo(config: DemoConfig) -> ImagesDemo:
    """Load teacher, students and report from the repository.

    `ConfigError` for options of a training, for a package without the repository beside it, and for a folder
    that cannot be written.
    """
    _refuse_options(config)
    files.check_writable(config.folder, "choose another --out")
    folder = models_beside(f"{config.data}-students")
    students = [Pipeline.load(place) for place in sorted(folder.glob("*-steps"), reverse=True)]
    report = read_report(folder)
    assert isinstance(report, Report)
    teacher = Pipeline.load(models_beside(f"{config.data}-teacher"))
    return ImagesDemo(config, folder, teacher, students, report)


def _refuse_options(config: DemoConfig) -> None:
    """`ConfigError` for an option that is only of the digits."""
    for option in fields(config):
        if option.name in ("data", "out", "device"):
            continue
        if getattr(config, option.name) != option.default:
            raise ConfigError(
                f"--{option.name.replace('_', '-')} is for the digits, and --data {config.data} trains and "
                "measures nothing: leave one of the two out"
            )
