"""Train a diffusion teacher from data."""

from dataclasses import dataclass, field

from halfstep.data import Data
from halfstep.methods.default_updates import default_batch, default_updates
from halfstep.methods.diffusion.denoising import Denoising, DenoisingOptions
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT
from halfstep.training import TrainingConfig
from halfstep.training.api import train
from halfstep.training.config import TrainingOptions
from halfstep.training.stages import RunOptions
from halfstep.workflows.default_sizes import default_learning_rate
from halfstep.workflows.new_pipeline import fresh_pipeline, NetworkOptions
from halfstep.workflows.options import DataOptions, SampledOptions, ShardOptions
from halfstep.workflows.run_options import run_options_of


@dataclass(frozen=True, kw_only=True)
class TrainDenoiserConfig:
    """Train a diffusion teacher from data."""

    folder: SampledOptions
    dataset: DataOptions
    network: NetworkOptions = field(default_factory=NetworkOptions)
    method: DenoisingOptions = field(default_factory=DenoisingOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    memory: ShardOptions = field(default_factory=ShardOptions)

    def resolved(self, n: int) -> tuple[Denoising, TrainingConfig]:
        """Method and optimisation, with the updates and batch that n samples need where none are given."""
        training = self.training.resolved(default_batch(n))
        return self.method.resolved(default_updates(n, training.batch_size)), training


@dataclass(frozen=True)
class DenoiserRun:
    """A teacher that is ready for training; nothing is written yet.

    method, training  with the updates and the batch that fit the data, unless the config has its own
    """

    config: TrainDenoiserConfig
    data: Data
    pipeline: Pipeline
    method: Denoising
    training: TrainingConfig

    def run(self, job: RunOptions | None = None) -> Pipeline:
        """Train the teacher into the run folder; returns it."""
        folder = self.config.folder
        return train(
            self.pipeline, self.data, folder.out, method=self.method, training=self.training,
            job=job or run_options_of(self.config),
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
    data = config.dataset.load(progress)
    method, training = config.resolved(len(data))
    pipeline = fresh_pipeline(config.network, data, method.drop_labels > 0, training.seed)
    rate = default_learning_rate(pipeline.denoiser.net)
    training = config.training.resolved(training.batch_size, rate)
    return DenoiserRun(config, data, pipeline, method, training)
