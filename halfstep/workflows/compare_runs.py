"""The runs of a comparison: each is an ordinary run, distilled, resumed or skipped."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from halfstep.config import JsonObject
from halfstep.config.fields import flat
from halfstep.data import Data
from halfstep.data.latents.dataset import is_latents
from halfstep.errors import ConfigError
from halfstep.methods.stages import Stage, StagePlan
from halfstep.pipeline import Pipeline
from halfstep.training import distill, TrainingConfig
from halfstep.training.progress import ProgressCallback
from halfstep.training.run_config import write_config
from halfstep.training.run_folder import RunFolder
from halfstep.training.run_progress import RunProgress
from halfstep.training.run_repair import LATENTS
from halfstep.training.stages import DryRunFinished, RunOptions
from halfstep.workflows.compare_beside import BesideMethod
from halfstep.workflows.compare_config import CompareConfig, ENCODED
from halfstep.workflows.compare_entries import Entry
from halfstep.workflows.run_options import run_options_of


@dataclass(frozen=True)
class Part:
    """A run of a comparison.

    entry     its method, with the updates that the budget allows
    folder    of the run
    forwards  that it costs
    """

    entry: Entry
    folder: Path
    seed: int
    forwards: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def plan(self, prepared: "PreparedComparison") -> list[StagePlan]:
        """The stages."""
        return self.entry.method.plan(prepared.teacher)

    def progress(self, prepared: "PreparedComparison") -> RunProgress | None:
        """How far the run is with the updates that it is to have; None before it began."""
        run = RunFolder(self.folder)
        return RunProgress.of(run, self.plan(prepared)) if run.exists else None

    def train(
        self,
        prepared: "PreparedComparison",
        callback: ProgressCallback | None = None,
        *,
        dry_run: Callable[..., None] | None = None,
    ) -> None:
        """Train the run, go on with it, or skip it where it is finished.

        Args:
            prepared: the comparison.
            callback: shows the progress.
            dry_run: called in place of training, as `RunOptions.dry_run`.
        """
        training = replace(prepared.training, seed=self.seed)
        keep = _Keeping(self.folder, self._options(prepared), callback or ProgressCallback())
        job: RunOptions = run_options_of(prepared.config, callback=keep, dry_run=dry_run)
        # `shared` compares the options of processes: those of the comparison hold for every part.
        distill(
            prepared.teacher, prepared.data, self.folder, method=self.entry.method,
            training=training, job=job,
        )  # fmt: skip

    def _options(self, prepared: "PreparedComparison") -> JsonObject:
        """The options with which `halfstep distill` makes the same run."""
        config = prepared.config
        training = replace(prepared.training, seed=self.seed)
        values = {
            **flat(config.dataset),
            **flat(config.teacher),
            **flat(self.entry.method),
            **flat(training),
            "out": self.folder,
            "device": config.folder.device,
        }
        encoded = config.folder.out / ENCODED / LATENTS
        if is_latents(encoded):
            values |= {"data": encoded, "size": None, "channels": None}
        return {name: value for name, value in values.items() if value not in (None, ())}


@dataclass(frozen=True, eq=False)
class PreparedComparison:
    """A comparison with all parts planned; nothing is written yet.

    parts   one run for each method and seed, the seeds of a method together
    beside  runs that exist
    closing  ends with the use of a dry run's data
    """

    config: CompareConfig
    teacher: Pipeline
    data: Data
    training: TrainingConfig
    entries: Sequence[Entry]
    parts: Sequence[Part]
    beside: Sequence[BesideMethod] = ()
    closing: ExitStack = field(default_factory=ExitStack)


def refuse_other_runs(prepared: PreparedComparison) -> None:
    """Refuse runs that were begun with other options, before any run is trained.

    Args:
        prepared: the comparison.

    Raises:
        ConfigError: a run in OUT/runs has other options, or another learning rate, which alone may change
            within a run.
    """
    rate = prepared.training.learning_rate
    for part in prepared.parts:
        run = RunFolder(part.folder)
        rates = [run.options["learning_rate"]] if run.exists else []
        for change in run.about["changed_options"] if run.exists else []:
            rates.append(change["values"].get("learning_rate", rate))
        if other := [each for each in rates if each != rate]:
            raise ConfigError(
                f"'{part.folder}' was trained with learning_rate = {other[0]:g}, now it is {rate:g}, and the "
                "runs of a comparison have one: choose another --out, or delete the folder"
            )
        if not prepared.config.memory.shard:  # sharded networks have no dry run
            with suppress(DryRunFinished):
                part.train(prepared, dry_run=lambda *_: None)


class _Keeping(ProgressCallback):
    """Another callback's progress; writes the run's config.toml before its first update."""

    def __init__(self, folder: Path, options: JsonObject, callback: ProgressCallback):
        self._folder, self._options, self._shown = folder, options, callback

    def begin(self, stage: Stage, update: int) -> None:
        if self._options:
            write_config(self._folder, self._options)
            self._options = {}
        self._shown.begin(stage, update)

    def step(self, update: int, rate: float) -> None:
        self._shown.step(update, rate)

    def measure(self, loss: float) -> None:
        self._shown.measure(loss)

    def end(self, stage: Stage) -> None:
        self._shown.end(stage)

    def note(self, text: str) -> None:
        self._shown.note(text)
