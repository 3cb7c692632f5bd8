"""The demo: distil a teacher of handwritten digits to few steps, score every student, draw them."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.config.fields import build, flat
from halfstep.config.preset_files import preset
from halfstep.config.toml import from_file
from halfstep.config.validate import Seed, Validated
from halfstep.data import Data, load
from halfstep.evaluation import Candidates, digits_features, Evaluation, SampleScorer
from halfstep.evaluation.report_data import Report, RunSummary, TrainingCost, TrainingCosts
from halfstep.evaluation.report_rows import Comparison, teacher_rows, TeacherRows
from halfstep.evaluation.scorer import scorer_for
from halfstep.evaluation.setups import SampleCount
from halfstep.hub.bundled import bundled_cost, bundled_teacher
from halfstep.methods import Progressive
from halfstep.methods.stages import StagePlan, teacher_times
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training import distill, train, TrainingConfig
from halfstep.training.distributed import pick_device
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_identity import environment
from halfstep.training.stages import RunOptions
from halfstep.workflows.background import background
from halfstep.workflows.demo_files import COUNTS, demo_results, draw_demo, FULL, SHOWN
from halfstep.workflows.new_pipeline import fresh_pipeline
from halfstep.workflows.report import provenance, report_on, save, training_cost, updates_of
from halfstep.workflows.train_denoiser import TrainDenoiserConfig

T = TypeVar("T")
M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Validated):
    """Distil a teacher of handwritten digits to 8, 4, 2 and 1 steps, score every student, draw them."""

    guided: bool = False
    """Instead: one student for every guidance scale, with a page where its slider can be moved."""
    out: Path | None = None
    """Folder for the run, results.json and the pictures: runs/demo, or runs/demo-guided."""
    quick: bool = False
    """A tenth of the updates, and with --guided of the samples: shows the machinery, not the quality."""
    from_scratch: bool = False
    """Train the teacher first, instead of the one that comes with halfstep; with --guided distil the
    students, instead of the ones that come with halfstep."""
    seed: Seed = 0
    """Seed of training; the scores always use the same noise."""
    n: SampleCount | None = None
    """Samples per score: 2,000 by default, with --guided 1,000, each 128 calls of the guided teacher."""
    device: str = "auto"
    """auto, or one by name."""

    @property
    def folder(self) -> Path:
        """Folder for the results."""
        return self.out or Path("runs/demo-guided" if self.guided else "runs/demo")

    @property
    def samples(self) -> int:
        """Samples per score."""
        default = 1000 if self.guided else 2000
        return default if self.n is None else self.n


@dataclass(frozen=True, kw_only=True)
class DistillPreset(Generic[M]):
    """The options of a preset that distils."""

    data: str
    method: M
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Demo:
    """A teacher that is ready to be distilled; no student is written yet."""

    config: DemoConfig
    data: Data
    teacher: Pipeline
    preset: DistillPreset[Progressive]
    evaluation: Evaluation
    scorer: SampleScorer

    @property
    def plan(self) -> list[StagePlan]:
        """The stages."""
        return self.preset.method.plan(self.teacher)

    def distill(
        self, *, callback: ProgressCallback | None = None
    ) -> tuple[list[Pipeline], TeacherRows]:
        """Distil the students into OUT/distill, and score the teacher meanwhile."""
        self.teacher.to(pick_device(self.config.device))

        def score(progress: Progress) -> TeacherRows:
            return teacher_rows(
                self.teacher, COUNTS, self.scorer, self.evaluation, progress=progress
            )

        with background(score) as rows:
            students = distill_students(self.teacher, self.data, self.preset, self.config, callback)
            return students, rows.result()

    def evaluate(
        self, students: list[Pipeline], rows: TeacherRows, *, progress: Progress = SILENT
    ) -> Report:
        """Score the students; write report, pictures and numbers into OUT.

        rows  the teacher's rows
        """
        config, run = self.config, self.config.folder / "distill"
        report = write_demo_report(
            config,
            Comparison(
                Candidates(
                    self.teacher,
                    students,
                    self.data,
                    teacher_times(self.plan),
                    halved=RunFolder(run).halved,
                ),
                self.scorer,
                self.evaluation,
            ),
            options={**flat(self.preset), "seed": config.seed},
            cost=TrainingCosts(_teacher_cost(config), training_cost(run)),
            run=run,
            teacher_rows=rows,
            progress=progress,
        )
        storage.write_json(config.folder / "results.json", demo_results(report))
        draw_demo(config.folder, self.teacher, students, report, progress=progress)
        return report


def prepare_demo(config: DemoConfig, *, callback: ProgressCallback | None = None) -> Demo:
    """Load the data and the teacher; with `from_scratch`, train the teacher into OUT/teacher.

    `ConfigError` for a folder that cannot be written.
    """
    files.check_writable(config.folder, "choose another --out")
    data = load("digits")
    teacher = _train_teacher(config, data, callback) if config.from_scratch else bundled_teacher()
    loaded = load_preset(DistillPreset[Progressive], "digits-progressive-64")
    method, training = loaded.method, replace(loaded.training, seed=config.seed)
    if config.quick:
        assert method.updates  # the preset has them
        method = replace(method, updates=tuple(max(1, k // 10) for k in method.updates))
        training = replace(training, warmup=training.warmup // 10)
    evaluation = Evaluation(
        samples=config.samples, full=FULL, counts=COUNTS, shown=SHOWN, cost_rounds=2
    )
    made = replace(loaded, method=method, training=training)
    scorer = scorer_for(digits_features(), data, evaluation, teacher=teacher)
    return Demo(config, data, teacher, made, evaluation, scorer)


def load_preset(kind: type[T], name: str, **changes: Any) -> T:
    """The options of a preset that comes with halfstep, with changes by name."""
    built: T = build(kind, from_file(kind, preset(name)) | changes)
    return built


def distill_students(
    teacher: Pipeline,
    data: Data,
    options: DistillPreset[Any],
    config: DemoConfig,
    callback: ProgressCallback | None,
) -> list[Pipeline]:
    """Distil into OUT/distill; returns every student, the most steps first."""
    students = list[Pipeline]()

    def collect(student: Pipeline) -> bool:
        students.append(student)
        return True

    job = RunOptions(device=config.device, callback=callback or ProgressCallback(), gate=collect)
    out = config.folder / "distill"
    method = options.method.build()
    distill(teacher, data, out, method=method, training=options.training, job=job)
    return students


def write_demo_report(
    config: DemoConfig,
    comparison: Comparison,
    *,
    options: JsonObject,
    cost: TrainingCosts,
    run: Path,
    teacher_rows: TeacherRows | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure, and write OUT/report.json, report.html and, of a guided run, slider.html.

    options  options of the training, for the report
    run      the run whose logged updates the report shows
    """
    report = report_on(
        comparison,
        provenance=provenance(environment(str(pick_device(config.device))), sys.argv),
        run=RunSummary(folder=config.folder.name, config=options, cost=cost),
        training=updates_of(run),
        teacher_rows=teacher_rows,
        progress=progress,
    )
    save(report, config.folder)
    return report


def _train_teacher(config: DemoConfig, data: Data, callback: ProgressCallback | None) -> Pipeline:
    """The teacher of presets/digits.toml, trained into OUT/teacher."""
    out = config.folder / "teacher"
    loaded = load_preset(TrainDenoiserConfig, "digits", out=out)
    method, training = loaded.resolved(len(data))
    training = replace(training, seed=config.seed)
    if config.quick:
        method = replace(method, updates=max(1, method.updates // 10))
    fresh = fresh_pipeline(loaded.network, data, method.drop_labels > 0, training.seed)
    job = RunOptions(device=config.device, callback=callback or ProgressCallback())
    return train(fresh, data, out, method=method, training=training, job=job)


def _teacher_cost(config: DemoConfig) -> TrainingCost | None:
    """Seconds and forwards (a forward 1, forward and backward 3) of the teacher's training."""
    if config.from_scratch:
        return training_cost(config.folder / "teacher")
    return TrainingCost(**bundled_cost("digits-teacher"))
