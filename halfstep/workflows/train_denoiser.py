"""Train a diffusion teacher from data."""

from dataclasses import dataclass, field

from halfstep.data import Data
from halfstep.methods.diffusion.denoising import Denoising
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training import TrainingConfig
from halfstep.training.api import train
from halfstep.training.stages import RunOptions
from halfstep.workflows.new_pipeline import fresh_pipeline, NetworkOptions
from halfstep.workflows.options import DataOptions, SampledOptions, ShardOptions
from halfstep.workflows.run_options import run_options_of


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserConfig:
    """Train a diffusion teacher from data."""

    folder: SampledOptions
    dataset: DataOptions
    network: NetworkOptions = field(default_factory=NetworkOptions)
    method: Denoising = field(default_factory=Denoising)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    memory: ShardOptions = field(default_factory=ShardOptions)


@dataclass(frozen=True)
class DenoiserRun:
    """A teacher that is ready for training; nothing is written yet."""

    config: TrainDenoiserConfig
    data: Data
    pipeline: Pipeline

    def run(self, job: RunOptions | None = None) -> Pipeline:
        """Train the teacher into the run folder; returns it."""
        folder = self.config.folder
        return train(
            self.pipeline, self.data, folder.out, method=self.config.method,
            training=self.config.training, job=job or run_options_of(self.config),
        )  # fmt: skip


def prepare_denoiser(config: TrainDenoiserConfig, *, progress: Progress = SILENT) -> DenoiserRun:
    """Read the data and build a fresh network for it; `run` of the result trains it.

    Args:
        config: the options of `halfstep train denoiser`.
        progress: progress of reading the data.

    Raises:
        ConfigError: the folder cannot be written, or the network does not fit the data.
        DataError: data that cannot be read.
    """
    config.folder.check()
    data, method = config.dataset.load(progress), config.method
    pipeline = fresh_pipeline(config.network, data, method.drop_labels > 0, config.training.seed)
    return DenoiserRun(config, data, pipeline)
