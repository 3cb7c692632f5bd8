"""Options of the quality gate on the command line, and `--start auto`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, cast, ClassVar

from annotated_types import Ge
from rich.console import Console

from halfstep.cli.console.progress import counting, say
from halfstep.config.validate import Count, NotNegative, Seed, Validated
from halfstep.data import Data
from halfstep.diffusion.time_grids import Steps
from halfstep.evaluation.gate import Gate, refuse_strict
from halfstep.evaluation.gate_metrics import GuidedTeacherRatio
from halfstep.evaluation.quality_gate import fewest_start, QualityGate
from halfstep.evaluation.setups import SampleCount
from halfstep.methods import Method, Progressive
from halfstep.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class OneScaleGateOptions(Validated):
    """When to stop halving, of students that take no guidance scale as an input."""

    tolerance: NotNegative | None = None
    """Stop when a student's ratio is surely above this. It is the student's Fréchet distance from the data
    over the teacher's at full steps. With --guidance-range both are distances from the guided teacher's
    samples, at the worst scale. By default 1.10, and 2 with --guidance-range or a smaller network; 0 is no
    gate."""
    until: Count | None = None
    """Never stop before the student of this number of steps; with 1 the gate only reports."""
    full: Annotated[Steps, Ge(0)] = 0
    """Full steps of the teacher; 0 is twice --start. With --guidance-range, 0 is --start, and 64 at least.
    With --start auto, which chooses the fewest steps of equal quality, 0 is 64."""
    features: str = "auto"
    """Features of the distance: auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER,
    inception:FILE or package.module:function."""
    samples: SampleCount = 2000
    """Samples of the gate's first measurement; up to eight times as many if it cannot decide."""
    gate_seed: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None:
            refuse_strict(self.tolerance)

    def build(self) -> QualityGate:
        """The gate of these options; with tolerance 0, the gate that `--start auto` measures with."""
        return QualityGate(
            tolerance=self.tolerance or None, until=self.until, full_steps=self.full,
            metric=self._metric(), features=self.features, samples=self.samples, seed=self.gate_seed,
        )  # fmt: skip

    def _metric(self) -> GuidedTeacherRatio | None:
        return None


@dataclass(frozen=True, kw_only=True)
class GateOptions(OneScaleGateOptions):
    """When to stop halving."""

    guidance_scales: tuple[NotNegative, ...] = ()
    """Guidance scales for the comparison; by default the ends of --guidance-range, the upper one 3 at
    most."""
    gate_seed: Seed = 0  # type: ignore[misc]
    """Seed of the noise of the gate's samples."""

    def _metric(self) -> GuidedTeacherRatio | None:
        scales = self.guidance_scales
        return GuidedTeacherRatio(guidance_scales=scales) if scales else None


def bind_gate(
    options: Any,
    method: Method,
    teacher: Pipeline,
    data: Data,
    load: Callable[[], Pipeline],
    console: Console,
    *,
    full: int | None,
) -> tuple[Any, Method, Gate | None]:
    """The options and the method with the start that --start auto finds, and the gate.

    full  steps of the teacher from which --start auto searches down
    """
    gate: OneScaleGateOptions | None = getattr(options, "gate", None)
    if gate is None:
        return options, method, None
    folder, config, meter = options.folder, gate.build(), None
    shown: Any = {"device": folder.device, "load": load, "showing": partial(counting, console)}
    if full is not None:
        config = replace(config, full_steps=full)
        halving = cast(Progressive, method)
        begin = replace(halving, start=full, updates=(0,))
        meter = config.meter(teacher, data, begin, **shown)
        method = fewest_start(halving, meter, folder.out, tell=partial(say, console, "start"))
        options = replace(options, method=method, gate=replace(gate, full=full))
    if gate.tolerance == 0:
        return options, method, None
    tell = partial(say, console, "gate")
    return options, method, config.bind(
        teacher, data, folder.out, method,
        tell=tell, meter=meter, dry_run=folder.dry_run, **shown,
    )  # fmt: skip


def auto_start(args: list[str]) -> bool:
    """Whether `--start auto` is among the arguments; it is removed."""
    for k, word in enumerate(args):
        if word == "--start=auto" or args[k : k + 2] == ["--start", "auto"]:
            del args[k : k + (1 if "=" in word else 2)]
            return True
    return False
