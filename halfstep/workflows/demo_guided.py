"""The guided demo: one student for every guidance scale, compared with the guided teacher."""

from dataclasses import dataclass, replace

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.config.fields import flat
from halfstep.data import Data, load
from halfstep.errors import ConfigError
from halfstep.evaluation import Candidates, digits_features, Evaluation
from halfstep.evaluation.guided_comparison import SCALES
from halfstep.evaluation.report_data import Report, TrainingCost, TrainingCosts
from halfstep.evaluation.report_rows import Comparison
from halfstep.evaluation.scorer import scorer_for
from halfstep.hub.bundled import bundled_cost, bundled_students, bundled_teacher
from halfstep.methods.diffusion.guided import GuidedDistillation, GuidedOptions
from halfstep.methods.stages import StagePlan
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.schema import plain
from halfstep.training.distributed import pick_device
from halfstep.training.progress import ProgressCallback
from halfstep.workflows.demo import (
    DemoConfig,
    distill_students,
    DistillPreset,
    load_preset,
    write_demo_report,
)
from halfstep.workflows.demo_files import common_results
from halfstep.workflows.report import training_cost

PRESET = "digits-guided"
MOST_STEPS = 8
"""Steps of the student with the most steps that is evaluated."""


@dataclass(frozen=True)
class GuidedDemo:
    """The bundled students for every guidance scale, or a teacher that is ready to be distilled."""

    config: DemoConfig
    data: Data
    teacher: Pipeline
    preset: DistillPreset[GuidedOptions]

    @property
    def method(self) -> GuidedDistillation:
        """The method that makes the students."""
        return self.preset.method.build()

    @property
    def plan(self) -> list[StagePlan]:
        """Its stages."""
        return self.method.plan(self.teacher)

    def students(self, *, callback: ProgressCallback | None = None) -> list[Pipeline]:
        """The bundled students, or those distilled into OUT/distill; of 8 steps and fewer."""
        if not self.config.from_scratch:
            return bundled_students()
        students = distill_students(self.teacher, self.data, self.preset, self.config, callback)
        return [s for s in students if s.times and len(s.times[0]) - 1 <= MOST_STEPS]

    @property
    def evaluation(self) -> Evaluation:
        """The measurements at every scale; `evaluate` adds the students' numbers of steps."""
        samples = self.config.samples
        return Evaluation(
            samples=samples // 10 if self.config.quick else samples,
            baselines=("dpmpp-2m",),
            metrics=("frechet", "inception"),
            guidance_scales=SCALES,
            split_samples=0,
            cost_rounds=2,
        )

    def evaluate(self, students: list[Pipeline], *, progress: Progress = SILENT) -> Report:
        """Compare students and guided teacher; write the pages and the numbers into OUT."""
        config, out = self.config, self.config.folder
        for pipeline in (self.teacher, *students):
            pipeline.to(pick_device(config.device))
        files.make_folder(out)
        counts = tuple(len(student.times[0]) - 1 for student in students)
        evaluation = replace(self.evaluation, counts=counts)
        run = out / "distill" if config.from_scratch else out
        cost = training_cost(run) if config.from_scratch else TrainingCost(**bundled_cost(PRESET))
        report = write_demo_report(
            config,
            Comparison(
                Candidates(self.teacher, students, self.data),
                scorer_for(digits_features(), self.data, evaluation, teacher=self.teacher),
                evaluation,
            ),
            options=flat(self.preset),
            cost=TrainingCosts(TrainingCost(**bundled_cost("digits-teacher")), cost),
            run=run,
            progress=progress,
        )
        storage.write_json(out / "results.json", _results(report))
        return report


def prepare_guided_demo(config: DemoConfig) -> GuidedDemo:
    """Load the data, the bundled teacher and the preset of its students.

    `ConfigError` for a folder that cannot be written, and for a seed where nothing is trained.
    """
    files.check_writable(config.folder, "choose another --out")
    data, teacher = load("digits"), bundled_teacher()
    if config.seed and not config.from_scratch:
        raise ConfigError(
            "--seed is of training, and these students come with halfstep: add --from-scratch, or leave "
            "it out"
        )
    loaded = load_preset(DistillPreset[GuidedOptions], PRESET)
    method, training = loaded.method, replace(loaded.training, seed=config.seed)
    if config.quick and config.from_scratch:
        assert method.updates and method.halving_updates  # the preset has them
        fewer = tuple(max(1, k // 10) for k in method.halving_updates)
        method = replace(method, updates=max(1, method.updates // 10), halving_updates=fewer)
        training = replace(training, warmup=training.warmup // 10)
    return GuidedDemo(config, data, teacher, replace(loaded, method=method, training=training))


def _results(report: Report) -> JsonObject:
    """The numbers of results.json: `guided` has a row for every guidance scale and number of steps."""
    assert report.guided is not None
    rows = report.guided.rows
    floors = {row.guidance_scale: row.distance.value for row in rows if row.role == "teacher"}
    guided = [
        {
            "guidance_scale": row.guidance_scale,
            "steps": row.steps,
            "calls": row.calls,
            "frechet_to_guided_teacher": row.distance.value,
            "floor": floors[row.guidance_scale],
            "times_floor": row.floor_ratio.value,
            "rmse_to_guided_teacher": row.rmse.value,
            "frechet_to_data": row.data_distance,
            "inception_score": row.inception_score,
        }
        for row in rows
        if row.floor_ratio and row.rmse
    ]
    reference = plain(report.guided.reference)
    return {"guided": guided, "reference": reference, **common_results(report)}
