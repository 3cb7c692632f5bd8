"""Options of the quality gate of a distillation: `halfstep.distill(..., gate=QualityGate())`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from halfstep.config import JsonObject
from halfstep.config.validate import Count, NotNegative, Seed, Validated
from halfstep.data import Data, Latents, NoData
from halfstep.diffusion.time_grids import Direction, Steps
from halfstep.errors import ConfigError
from halfstep.evaluation.features.registry import Features
from halfstep.evaluation.gate import fewest_steps, Gate, Measure, refuse_strict
from halfstep.evaluation.gate_meter import Meter, Showing, silent, TeacherSource
from halfstep.evaluation.gate_metrics import DataRatio, GuidedTeacherRatio, Inputs
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.scorer import features_for, refuse_samples
from halfstep.evaluation.setups import FULL_STEPS, SampleCount
from halfstep.methods import Progressive
from halfstep.methods.base import Method
from halfstep.methods.diffusion.reparameterise import V_TEACHER
from halfstep.pipeline import Pipeline
from halfstep.training.distributed import pick_device
from halfstep.training.run_folder import RunFolder

MOST = 8
"""The largest number of samples of the gate, as a multiple of `samples`."""
OF_HALVING, OF_OTHERS = 1.10, 2.0
"""Default tolerances: for a method that only halves, and for one that begins with another network."""


@dataclass(frozen=True, kw_only=True)
class QualityGate(Validated):
    """Stop halving when a student is surely worse than its teacher.

    Args:
        tolerance: the largest ratio that passes; default 1.10, or 2.0 for a method that begins with a
            guided or a smaller network.
        metric: `DataRatio`, or `GuidedTeacherRatio` for students that take a guidance scale as an input;
            None chooses by the method.
        until: never stop before a student of so many steps; 1 never stops and only reports.
        full_steps: the teacher's full steps; 0 is twice the method's start against the data, and the
            start, but at least 64, against the guided teacher.
        features: auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE,
            package.module:function, or `Features`, which maps images [N, C, H, W] to [N, D].
        samples: number of samples of the first measurement; up to eight times as many if undecided.
        seed: seed of their noise.

    Raises:
        ConfigError: a tolerance in (0, 1), or a number beyond its range; in `bind`, a method, teacher or
            data without such a gate.
    """

    tolerance: NotNegative | None = None
    metric: DataRatio | GuidedTeacherRatio | None = None
    until: Count | None = None
    full_steps: Annotated[Steps, Ge(0)] = 0
    features: str | Features = "auto"
    samples: SampleCount = 2000
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            refuse_strict(self.tolerance)

    def full_steps_of(self, method: Method, teacher: Pipeline) -> int:
        """The teacher's full steps.

        Args:
            method: the distillation.
            teacher: the pipeline that is distilled.

        Raises:
            ConfigError: the method or the teacher does not allow them.
        """
        halvings = Halvings.of(method, teacher)
        if halvings is None:
            return self.full_steps or FULL_STEPS
        _refuse_blind_reference(teacher)
        start = halvings.start
        if isinstance(self._metric(halvings), GuidedTeacherRatio):
            full = self.full_steps or max(start, FULL_STEPS)
        else:
            full = self.full_steps or max(teacher.step_counts, default=2 * start)
            teacher.grid(full)  # refuses other steps than those of a teacher that is a student
        if full < start:
            raise ConfigError(
                f"full steps are the teacher's best, got --full {full} below --start {start}: "
                f"write --full {start} or more"
            )
        return full

    def bind(
        self,
        teacher: Pipeline,
        data: Data,
        out: Path | str,
        method: Method,
        *,
        device: str = "auto",
        load: Callable[[], Pipeline] | None = None,
        tell: Callable[[str], object] = str,
        showing: Showing = silent,
        meter: Meter | None = None,
        dry_run: bool = False,
    ) -> Gate | None:
        """The gate of a run, which writes OUT/gate.json; None for a method without halvings.

        Args:
            teacher: the pipeline that is distilled.
            data: the run's data, images [N, C, H, W] or samples [N, ...].
            out: the run's folder.
            method: the distillation.
            device: where samples are drawn.
            load: reads the teacher again when it must be sampled; without it, the gate keeps the teacher.
            tell: called with each decision as a sentence.
            showing: opens the progress display of each measurement.
            meter: reuse this meter, such as that of `fewest_start`.
            dry_run: measure nothing, only raise the errors that the run would raise.

        Raises:
            ConfigError: the students have nothing to be compared with, or no features fit the data.
        """
        if (halvings := Halvings.of(method, teacher)) is None:
            return None
        metric = self._metric(halvings)
        inputs = self._inputs(teacher, data, method, device, load, showing)
        measure: Measure = _never if dry_run else (meter or metric.meter(inputs)).student
        default = OF_HALVING if halvings.alone else OF_OTHERS
        gate = Gate(
            measure,
            default if self.tolerance is None else self.tolerance,
            file=Path(out) / "gate.json",
            about=_about(metric, inputs),
            until=self.until,
            samples=self.samples,
            most=MOST * self.samples,
            tell=tell,
            writes=os.environ.get("RANK", "0") == "0",
            full=inputs.full_steps,
        )
        gate.read()
        return gate

    def meter(
        self,
        teacher: Pipeline,
        data: Data,
        method: Method,
        *,
        device: str = "auto",
        load: Callable[[], Pipeline] | None = None,
        showing: Showing = silent,
    ) -> Meter:
        """A meter for students of this method.

        Args:
            teacher: as of `bind`.
            data: as of `bind`.
            method: as of `bind`.
            device: as of `bind`.
            load: as of `bind`.
            showing: as of `bind`.

        Raises:
            ConfigError: as of `bind`.
        """
        inputs = self._inputs(teacher, data, method, device, load, showing)
        return self._metric(Halvings.of(method, teacher)).meter(inputs)

    def _metric(self, halvings: "Halvings | None") -> DataRatio | GuidedTeacherRatio:
        if self.metric is not None:
            return self.metric
        guided = halvings is not None and halvings.guidance_range is not None
        return GuidedTeacherRatio() if guided else DataRatio()

    def _inputs(
        self,
        teacher: Pipeline,
        data: Data,
        method: Method,
        device: str,
        load: Callable[[], Pipeline] | None,
        showing: Showing,
    ) -> Inputs:
        halvings, place = Halvings.of(method, teacher), pick_device(device)
        if halvings is None:
            raise ConfigError(
                "a gate measures halvings, and this method has none: leave the gate out"
            )
        if halvings.direction == "invert":
            raise ConfigError(
                "a gate compares samples, and students that encode draw none: leave the gate out"
            )
        if isinstance(data, NoData) and isinstance(self._metric(halvings), DataRatio):
            raise ConfigError(
                "the gate of these students compares with data, and there are none: leave the gate out "
                "(command line: --tolerance), or name data"
            )
        full = self.full_steps_of(method, teacher)
        inputs = Inputs(
            teacher.to(place),  # the cache of its samples distinguishes kinds of device
            TeacherSource(teacher, place, load),
            data,
            self._features(data),
            halvings.guidance_range,
            halvings.grid,
            full,
            self.samples,
            self.seed,
            showing,
        )
        codec = teacher.codec if isinstance(data, Latents | NoData) else None
        factor = 1 if codec is None else codec.factor
        channels, *sides = data.shape
        refuse_samples(MOST * self.samples, (channels, *(factor * side for side in sides)))
        _ = inputs.captions  # refuses a text-conditioned teacher with data that have no texts
        return inputs

    def _features(self, data: Data) -> Features:
        if isinstance(self.features, Features):
            return self.features
        try:
            return features_for(self.features, data)
        except ConfigError as error:
            raise ConfigError(f"{error}; or --tolerance 0, which halves without a gate") from None


def _about(metric: DataRatio | GuidedTeacherRatio, inputs: Inputs) -> JsonObject:
    """The settings of the measurements, as RUN/gate.json has them."""
    return {
        "features": inputs.features.name,
        "digest": inputs.features.digest,
        "preprocessing": inputs.features.preprocessing,
        **metric.about(inputs),
        "samples": inputs.samples,
        "full": inputs.full_steps,
        "seed": inputs.seed,
    }


def _never(student: Any, samples: int) -> Interval:
    raise AssertionError("a rehearsal measures no student")


@dataclass(frozen=True)
class Halvings:
    """The halvings in the plan of a method.

    start           the steps that the first one halves
    grid            name of their time grid
    direction       of the students
    guidance_range  range of guidance scales that the students take as an input, or None
    alone           whether the method has no other stages than halvings, and an eps teacher's first
    """

    start: int
    grid: str
    direction: Direction
    guidance_range: tuple[float, float] | None
    alone: bool

    @classmethod
    def of(cls, method: Method, teacher: Pipeline) -> "Halvings | None":
        """The halvings of a method for this teacher; None without any."""
        plan = method.plan(teacher)
        halved = [stage for stage in plan if stage.teacher_times]
        if not halved:
            return None
        first, others = halved[0], [s for s in plan if not s.teacher_times and s.name != V_TEACHER]
        start = len(first.teacher_times) - 1
        return cls(start, first.grid, first.direction, first.guidance_range, not others)


def _refuse_blind_reference(teacher: Pipeline) -> None:
    """`ConfigError` for an eps teacher whose own samples, the gate's reference, mean nothing.

    At t = 1 its first x0 is (x - sigma eps) / alpha, which rounding makes arbitrary where alpha is tiny.
    """
    level = teacher.denoiser.schedule.at(torch.ones((), dtype=torch.float64))
    if teacher.denoiser.parameterisation.blind_to_data and level.alpha < 1e-3 * level.sigma:
        raise ConfigError(
            "the gate compares students with their teacher's samples, and this eps teacher's mean nothing: "
            f"at t = 1 alpha is {float(level.alpha):.1e}.  Write --tolerance 0, or make a v teacher of it "
            "first (halfstep distill reparameterise) and distil that"
        )


def full_for_auto(gate: QualityGate, method: Progressive, teacher: Pipeline) -> int:
    """The teacher's full steps, where `fewest_start` begins; `ConfigError` for options it does not allow."""
    _refuse_blind_reference(teacher)
    full = gate.full_steps or max(teacher.step_counts, default=FULL_STEPS)
    teacher.grid(full)  # refuses other steps than those of a teacher that is a student
    if method.updates is not None and len(method.updates) > 1:
        raise ConfigError(
            f"--start auto chooses the number of halvings, and --updates has {len(method.updates)} numbers: "
            "give one for all"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "--start auto needs a single process: begin the run with one, or give --start a number"
        )
    if method.times:
        raise ConfigError(
            "--start auto chooses the time grid, and so does times: leave one of them out"
        )
    replace(method, start=full, updates=(0,))  # refuses steps that do not halve down to stop
    return full


def fewest_start(
    method: Progressive, meter: Meter, out: Path | str, *, tell: Callable[[str], object] = str
) -> Progressive:
    """The method, starting from the fewest steps at which the teacher is as good as at full steps.

    This is `--start auto`.  A resumed run keeps its start.

    tell  called with the choice as a sentence
    """
    run = RunFolder(out)
    if run.exists:
        if run.about["command"] == "distill progressive":
            return replace(method, start=run.options["start"])
        return method  # the folder of another run: the run itself refuses it
    full, n = meter.full_steps, meter.samples
    steps = fewest_steps(
        meter.teacher_at, full, stop=method.first or method.stop, samples=n, most=MOST * n
    )
    why = "fewer would cost quality" if steps == full else f"they are as good as {full}"
    tell(f"{steps} steps: {why}")
    return replace(method, start=steps)
