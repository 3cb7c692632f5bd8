"""The options of a comparison of methods."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from halfstep.config.validate import Count, NotNegative, Place, Seed, Validated
from halfstep.diffusion.samplers import draws_noise
from halfstep.diffusion.time_grids import Steps
from halfstep.errors import ConfigError, unknown
from halfstep.evaluation.setups import FULL_STEPS, SampleCount, SAMPLERS
from halfstep.training.config import TrainingOptions
from halfstep.workflows.locate import DiffusersOptions, Official
from halfstep.workflows.options import (
    DataOptions,
    EncodingOptions,
    FolderOptions,
    MemoryOptions,
)

RUNS, SAMPLES, ENCODED, PAGE = "runs", "samples", "data", "compare.html"
"""Folders of the runs, of their samples and of encoded images, and the page, in the comparison's folder."""


@dataclass(frozen=True, kw_only=True)
class ComparisonFolder(FolderOptions):
    """The folder of a comparison, and the options of its runs."""

    out: Path
    """The comparison's folder, with its runs in OUT/runs; the same command again goes on where it stopped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "out", Path(self.out))


@dataclass(frozen=True, kw_only=True)
class ComparisonData(DataOptions):
    """The data of all runs, which the students are compared with, too."""

    data: str = ""
    """digits, two-moons, fashion-mnist:FOLDER, cifar10:FOLDER. Images in a folder, in tar shards (webdataset)
    or in tables (parquet, datasets); a .npy or .npz file; a folder of latents. By default the data of the
    first run beside."""


@dataclass(frozen=True, kw_only=True)
class ComparedTeacher:
    """The teacher of all methods."""

    teacher: Place | None = None
    """A teacher's folder, or the run that made it. Of diffusers: a folder, a .safetensors file, or OWNER/NAME
    on the hub. By default that of the first run beside."""
    net: str | None = None
    """package.module:function, if the teacher's network is one of your own."""
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    official: Official = field(default_factory=Official)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Validated):
    """The methods, and the budget of each."""

    methods: tuple[str, ...] = ()
    """The methods: verbs of halfstep distill, presets, or TOML files of options that say method = "VERB"."""
    budget: Count | None = None
    """Forwards that each run may spend, all included: a forward counts 1, forward and backward 3."""
    beside: tuple[Path, ...] = ()
    """Runs of the same teacher that exist, for the same table; those that differ in their seed are one
    method."""
    counts: tuple[Count, ...] = (8, 4, 2, 1)
    """Numbers of steps at which the students are compared."""
    start: Steps = 32
    """Steps of the teacher that the methods begin with."""
    seeds: Count = 1
    """Runs of each method, with --seed and the numbers after it. One cannot tell a better method from a
    luckier seed; 3 can."""
    target_sampler: str = "ddim"
    """Sampler of the target, the trajectories of the teacher that all students are compared with: ddim, heun,
    dpmpp-2m, ..."""
    target_steps: Annotated[int, Ge(0)] = 0
    """Steps of the target; 0 is --start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beside", tuple(map(Path, self.beside)))
        object.__setattr__(self, "counts", tuple(sorted(set(self.counts), reverse=True)))
        if not self.counts:
            raise ConfigError("counts is empty: write numbers of steps, such as 8 4 2 1")
        if self.target_sampler not in SAMPLERS:
            raise unknown("sampler", self.target_sampler, SAMPLERS)
        if draws_noise(self.target_sampler):
            raise ConfigError(
                f"target_sampler='{self.target_sampler}' draws noise at its steps, and no student can land "
                "where it does: write a deterministic one, such as ddim (command line: --target-sampler ddim)"
            )

    @property
    def target(self) -> tuple[str, int]:
        """Sampler and steps of the target walk."""
        return self.target_sampler, self.target_steps or self.start


@dataclass(frozen=True, kw_only=True)
class CompareMeasures(Validated):
    """The measurements."""

    samples: SampleCount = 2000
    """Samples of each student, of the teacher and of the target, all from the same noise."""
    noise_seed: Seed = 0
    """Seed of that noise."""
    full: Steps = FULL_STEPS
    """DDIM steps of the teacher, whose distance is 1 in every ratio."""
    guidance_scale: NotNegative = 1.0
    """Guidance scale of all samples."""
    features: str = "auto"
    """auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
    package.module:function."""
    shown: Annotated[int, Ge(1)] = 12
    """Number of seeds in the grid of samples."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare distillation methods at equal cost: which method for which number of steps?"""

    folder: ComparisonFolder
    dataset: ComparisonData = field(default_factory=ComparisonData)
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    teacher: ComparedTeacher = field(default_factory=ComparedTeacher)
    compare: CompareOptions = field(default_factory=CompareOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    evaluation: CompareMeasures = field(default_factory=CompareMeasures)
