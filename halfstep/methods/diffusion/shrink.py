"""Smaller students, trained on the teacher's prediction, the data and the teacher's features at once.

Output and feature distillation with a denoising loss, as in BK-SDM (Kim et al., ECCV 2024) and LAPTOP-Diff
(Zhang et al. 2024), which divides each feature's error by the teacher's energy.  Student and teacher get the
same noise, time and dropped label.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from torch import nn

from halfstep.config import JsonObject
from halfstep.config.validate import CountOrNone, NotNegative, Share, Updates, Validated
from halfstep.data import Data
from halfstep.diffusion.denoiser import Denoiser, Teacher
from halfstep.diffusion.loss_weighting import WEIGHTINGS
from halfstep.errors import ConfigError, unknown
from halfstep.methods.base import Method, refuse_student
from halfstep.methods.default_updates import every_time_updates, PAPER
from halfstep.methods.diffusion.block_features import block_pairs, Matched, matched
from halfstep.methods.diffusion.block_scores import scores
from halfstep.methods.diffusion.denoising import label_dropping
from halfstep.methods.diffusion.guided import AnyScale
from halfstep.methods.diffusion.imitation import Imitate
from halfstep.methods.pipeline_like import PipelineLike
from halfstep.methods.random_times import levels_for
from halfstep.methods.stages import Objective, Stage, StagePlan
from halfstep.models import build_like, recipe
from halfstep.models.compression.block_pruning import (
    best_pairs,
    checked_pairs,
    evenly_spaced,
    pairs_of,
    shallower,
)
from halfstep.models.compression.unet_transfer import transfer_weights
from halfstep.models.guidance_embedding import reads_scale
from halfstep.models.hooks import Projected
from halfstep.progress import Progress, SILENT
from halfstep.rng import fork_rng
from halfstep.schema import literal

SHRUNK = "shrunk"
"""The name of the stage."""


@dataclass(frozen=True, kw_only=True)
class Shrink(Validated, Method):
    """A smaller network that predicts what its teacher predicts, at every time.

    Raises:
        ConfigError: no option makes the student smaller, two do, or all weights of the loss are 0.
    """

    keeps_network: ClassVar[bool] = False
    depth: CountOrNone = 0
    """Blocks besides the middle one that a U-ViT student keeps, with the teacher's weights: an even number,
    fewer than the teacher's; 0 is unset."""
    keep: tuple[int, ...] = ()
    """The pairs of blocks to keep, 0 (outermost) to depth / 2 - 1 of the teacher; by default `choose`
    chooses them."""
    choose: Literal["score", "even"] = "score"
    """How to choose the pairs of blocks to keep. score: those whose removal raises the loss most on the
    data. even: evenly spaced."""
    student: dict[str, str] = field(default_factory=dict)
    """Other options of the student, as NAME VALUE pairs: embed_dim 32 num_heads 2; layers_per_block 1.
    The others are the teacher's. A U-Net starts from the teacher's weights where shapes agree, other networks
    start untrained."""
    updates: Updates | None = None
    """Optimiser updates. By the data: a quarter of a teacher's default."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, snr, truncated-snr, snr+1 or min-snr."""
    levels: CountOrNone = 0
    """Draw times from {1/levels, ..., 1}; 0 draws them from all of (0, 1), or from the schedule's table."""
    output: NotNegative = 0.9
    """Weight of the error to the teacher's prediction."""
    denoising: NotNegative | None = None
    """Weight of the error to the data; 0.1 by default, and 0 for a guided teacher, whose images are not
    the data's."""
    feature_weight: NotNegative | None = None
    """Weight of the mean error of the blocks' outputs, each divided by the energy of the teacher's. The
    default is 0.1, and 0 for a student whose blocks have no counterpart. A narrower student's features pass
    a linear map that is trained with it."""
    mask: NotNegative = 0.0
    """Leave out features this many standard deviations from their mean (TinyFusion: 2); 0 keeps all."""
    drop_labels: Share | None = None
    """Share of samples without their label for both networks, for guidance; 0.1 by default where the
    teacher has a null class or an empty text."""

    gated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if self.output == 0 and self.denoising == 0:
            raise ConfigError(
                "output and denoising are both 0, so the student's output would not be trained: give one of "
                "them a weight, such as output=0.9"
            )
        self._refuse_two_ways()

    def _refuse_two_ways(self) -> None:
        if self.keep and self.depth and self.depth != 2 * len(self.keep):
            raise ConfigError(
                f"keep names {len(self.keep)} pairs, which is depth {2 * len(self.keep)}, and depth is "
                f"{self.depth}: leave one of the two out"
            )
        if self.depth % 2:
            raise ConfigError(
                f"blocks are left out in pairs, and depth {self.depth} is odd: write depth="
                f"{max(self.depth - 1, 2)}"
            )
        if "depth" in self.student and (self.keep or self.depth):
            raise ConfigError(
                "depth is given twice: leave it out of student (where it makes a student start untrained)"
            )
        if not (self.keep or self.depth or self.student):
            raise ConfigError(
                "the student is not smaller: give depth or keep for a U-ViT, or options of the "
                "student (command line: --depth 2, --keep 0 4, --student embed_dim 32)"
            )

    @property
    def needs_data(self) -> bool:
        """Whether the pairs of blocks to keep are chosen by their scores on the data."""
        return bool(self.depth and not self.keep and not self.student and self.choose == "score")

    def resolve(
        self,
        teacher: PipelineLike,
        data: Data | None,
        *,
        previous: JsonObject | None = None,
        progress: Progress = SILENT,
    ) -> Self:
        """The method with the pairs of blocks to keep, scored on the data unless they are named.

        Args:
            teacher: the pipeline to distil.
            data: scores the blocks; None leaves them open.
            previous: the options of the run that is continued, with its pairs.
            progress: advances with every pair that is scored.

        Raises:
            ConfigError: a depth that the teacher does not have.
        """
        options = previous or {}
        if not self.needs_data:
            return self
        if options.get("depth") == self.depth and options.get("keep"):
            return replace(self, keep=tuple(options["keep"]))
        if data is None:
            return replace(self, choose="even")
        rises = self.scores(teacher, data, progress=progress)
        keep = best_pairs(rises, self.depth // 2)
        names = " ".join(map(str, keep))
        progress.note(f"of {len(rises)} pairs of blocks, 0 the outermost, these stay: {names}")
        return replace(self, keep=keep)

    def scores(
        self, teacher: PipelineLike, data: Data, *, progress: Progress = SILENT
    ) -> list[float]:
        """The rise of the loss without each pair of the teacher's blocks, the outermost first.

        Args:
            teacher: the pipeline to distil.
            data: on which the loss is taken.
            progress: advances with every pair that is scored.
        """
        denoiser = teacher.denoiser.trainable_copy().freeze()
        objective: Objective = self.objective(denoiser, teacher)
        if teacher.guidance_range is not None and reads_scale(denoiser.net):
            objective = AnyScale(objective, teacher.guidance_range)
        return scores(objective, denoiser, data, progress=progress)

    @property
    def builds_student(self) -> bool:
        """Whether the student is built with other options than the teacher."""
        return bool(self.student)

    def summary(self) -> str:
        """shrink to depth 2, embed_dim 32."""
        depth = 2 * len(self.keep) or self.depth
        parts = [f"depth {depth}"] if depth else []
        parts += [f"{name} {value}" for name, value in self.student.items()]
        return f"shrink to {', '.join(parts)}"

    def plan(self, teacher: PipelineLike) -> list[StagePlan]:
        """One stage: the smaller network.

        Args:
            teacher: the pipeline to distil.
        """
        updates = every_time_updates(PAPER) if self.updates is None else self.updates
        return [StagePlan(SHRUNK, updates, forwards=Imitate.forwards)]

    def sized(self, teacher: PipelineLike, updates: int) -> Self:
        """The method with its updates: a quarter of the teacher's unless some are given.

        Args:
            teacher: the pipeline to distil.
            updates: that a teacher of these data has by default.
        """
        return (
            self if self.updates is not None else replace(self, updates=every_time_updates(updates))
        )

    def check(self, teacher: PipelineLike) -> None:
        """Refuse a student as the teacher, and options that do not fit it.

        Args:
            teacher: the pipeline to distil.

        Raises:
            ConfigError: the teacher is a student of a few steps, or a guided one whose images are not the
                data's.
        """
        super().check(teacher)
        refuse_student(teacher)
        label_dropping(self.drop_labels, teacher.unconditional)
        if self.denoising and _is_guided(teacher):
            raise ConfigError(
                "a guided teacher's images are not the data's, to which denoising would pull the student: "
                "write denoising=0"
            )
        levels_for(self.levels, teacher.denoiser.schedule)
        if self.needs_data:
            replace(self, choose="even").kept_pairs(teacher.denoiser.unguided.net)

    def stages(self, teacher: PipelineLike) -> Iterator[Stage]:
        """The stages for a teacher that passes `check`; code after a `yield` runs after its training.

        Args:
            teacher: the pipeline to distil, on its device.
        """
        [stage], eta = self.plan(teacher), teacher.denoiser
        student = self.initial_student(eta)
        features = self._features(eta, student)
        objective = self.objective(eta.freeze(), teacher, features)
        projectors = features and features.projectors
        learner = Projected(student, projectors) if projectors else student
        yield stage.stage(learner, objective)

    def objective(
        self, frozen: Teacher, teacher: PipelineLike, features: Matched | None = None
    ) -> Imitate:
        """The loss of a student of this teacher with the frozen denoiser.

        Args:
            frozen: the teacher's denoiser.
            teacher: the pipeline to distil.
            features: compares blocks; None compares outputs alone.
        """
        null = teacher.unconditional
        drop = label_dropping(self.drop_labels, null)
        guided = _is_guided(teacher)
        denoising = self.denoising if self.denoising is not None else (0.0 if guided else 0.1)
        levels = levels_for(self.levels, frozen.schedule)
        return Imitate(
            frozen, WEIGHTINGS[self.weighting], self.output, denoising, features, levels, drop, null
        )

    def initial_student(self, teacher: Teacher) -> Denoiser:
        """The student before training.

        Args:
            teacher: the teacher's denoiser.

        Raises:
            ConfigError: a student that is no smaller than its teacher.
        """
        student = teacher.trainable_copy()
        if self.student:
            student.net = self._built(student.net)
        else:
            student.net = shallower(student.net, self.kept_pairs(student.net))
        return student

    def kept_pairs(self, net: nn.Module) -> tuple[int, ...]:
        """The pairs of this teacher's blocks that the student keeps.

        Args:
            net: the teacher's network.

        Raises:
            ConfigError: all pairs are kept, or none was chosen yet.
        """
        pairs = pairs_of(net)
        if self.depth and not 2 <= self.depth < 2 * pairs:
            most = (
                f"write an even number from 2 to {2 * pairs - 2}" if pairs > 1 else "give student"
            )
            raise ConfigError(
                f"a student of depth {self.depth} is no shallower than its teacher of depth {2 * pairs}: "
                f"{most}"
            )
        if self.needs_data:
            raise ConfigError(
                "the pairs of blocks are scored on data: call method.resolve(teacher, data), or write "
                "choose='even' or keep=(0,)"
            )
        keep = checked_pairs(self.keep or evenly_spaced(pairs, self.depth // 2), pairs)
        if len(keep) == pairs:
            raise ConfigError(
                f"keep names all {pairs} pairs of blocks, so nothing would get smaller: leave one out"
            )
        return keep

    def _built(self, net: nn.Module) -> nn.Module:
        """A new network of other options; a U-Net takes over the teacher's weights where shapes agree."""
        name, config = recipe(net)
        options = {key: literal(value) for key, value in self.student.items()}
        depth = {"depth": 2 * len(self.keep) or self.depth} if self.keep or self.depth else {}
        weight = next(iter(net.parameters()))
        with fork_rng(0):
            new = build_like(net, {**config, **depth, **options}).to(weight.device, weight.dtype)
        if _size(new) >= _size(net):
            raise ConfigError(
                f"the student has {_size(new):,} parameters and its teacher {_size(net):,}: ask for fewer in "
                "student, such as half the embed_dim"
            )
        if name == "unet":
            transfer_weights(new, net)
        return new

    def _features(self, teacher: Teacher, student: Denoiser) -> Matched | None:
        teacher_net = teacher.unguided.net
        pairs = block_pairs(student.net, teacher_net, self.keep)
        if self.feature_weight and not pairs:
            raise ConfigError(
                "features are compared block by block, and this student's blocks differ in place or number "
                "from its teacher's: write feature_weight=0"
            )
        weight = self.feature_weight if self.feature_weight is not None else 0.1 * bool(pairs)
        if weight:
            return matched(pairs, teacher_net, weight, self.mask)
        if self.mask:
            raise ConfigError(
                "mask leaves out features, and this student's are not compared: write mask=0, or give "
                "feature_weight a value, such as 0.1"
            )
        return None


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _is_guided(teacher: PipelineLike) -> bool:
    """Whether guidance, from outside or by a scale as an input, changes the teacher's predictions."""
    return teacher.guidance_range is not None or teacher.denoiser.guided
