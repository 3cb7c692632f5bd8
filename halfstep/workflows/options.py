"""Groups of options that several verbs share: the run's folder, and the data."""

from dataclasses import dataclass
from pathlib import Path

from halfstep.config.validate import Count, CountOrNone, Validated
from halfstep.data import Data, load
from halfstep.files import check_writable
from halfstep.progress import Progress, SILENT
from halfstep.training.trackers import check_trackers


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Validated):
    """The folder of a run, and the options of running it."""

    out: Path
    """The run's folder; the same command again goes on where it stopped."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name: cpu, cuda:1."""
    extend: bool = False
    """Let the run in this folder have more updates, or halve further."""
    from_previous: bool = False
    """Go on from the checkpoint before a damaged one."""
    dry_run: bool = False
    """Print stages, updates, memory and time, without training."""
    log: tuple[str, ...] = ()
    """Trackers beside OUT/metrics.jsonl: any of tensorboard, wandb, trackio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trackers(self.log)

    def check(self) -> None:
        """Refuse a folder that cannot be written, before anything is read."""
        check_writable(self.out, "choose another --out")


@dataclass(frozen=True, kw_only=True)
class WalksOptions(Validated):
    """The teacher's kept trajectories."""

    walks: Path | None = None
    """Folder of the teacher's trajectories: those that are there are used, and more are added. By default the
    run has its own."""


@dataclass(frozen=True, kw_only=True)
class SampledOptions(FolderOptions):
    """The folder of a run whose students draw samples."""

    samples_every: CountOrNone | None = None
    """Updates between pictures of the averaged student's samples, in OUT/samples; 0 draws none. By default
    --save-every with --log, else 0."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Validated):
    """The data."""

    data: str
    """digits, two-moons, fashion-mnist:FOLDER, cifar10:FOLDER. Images in a folder, in tar shards (webdataset)
    or in tables (parquet, datasets); a .npy or .npz file; a folder of latents. none distils a diffusion
    teacher without data, on its trajectories from noise. none:student takes the student's trajectories."""
    size: Count | None = None
    """Side of the images in pixels."""
    channels: Count | None = None
    """1 for gray, 3 for colour."""
    flip: bool = False
    """Mirror half of the images, at random."""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and list them in OUT/skipped.txt."""

    def load(self, progress: Progress = SILENT) -> Data:
        """Read the data."""
        return load(
            self.data,
            size=self.size,
            channels=self.channels,
            flip=self.flip,
            skip_bad=self.skip_bad,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Validated):
    """Less memory for the same numbers."""

    shard: bool = False
    """Divide networks, gradients, optimiser and average among the processes of torchrun."""


@dataclass(frozen=True, kw_only=True)
class WholeNetworkOptions(Validated):
    """Less memory for the same numbers, of networks that no process divides."""

    gradient_checkpointing: bool = False
    """Recompute the student's activations in the backward pass: less memory, a third more time."""
    offload: bool = False
    """Keep the teacher and the codec in the CPU's memory while they are not called; on a GPU."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(WholeNetworkOptions, ShardOptions):
    """Less memory for the same numbers."""


@dataclass(frozen=True, kw_only=True)
class EncodingOptions(Validated):
    """How images become latents, for a teacher that makes latents."""

    prompts: Path | None = None
    """A text file with a prompt a line, for images without captions: in turn, one an image."""
    encode_batch: Count = 16
    """Images that are encoded at a time."""
