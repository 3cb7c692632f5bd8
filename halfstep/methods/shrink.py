"""Smaller students: the teacher's prediction, the data and the teacher's features, all at once.

Output and feature distillation with a denoising loss, as in BK-SDM (Kim et al., ECCV 2024) and LAPTOP-Diff
(Zhang et al. 2024), which divides each feature's error by the teacher's own energy.  The student sees the
noise, the time and the dropped label that the teacher sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast, Literal

import torch
from torch import nn, Tensor

from halfstep.denoiser import Denoiser, Guided, Teacher
from halfstep.errors import ConfigError, unknown
from halfstep.kinds import CountOrNone, hold_to_kinds, NotNegative, Share, Updates
from halfstep.methods.base import levels_for, Stage
from halfstep.methods.imitation import Imitate, Matched
from halfstep.nets import built_again, recipe
from halfstep.nets.blocks import blocks_of, comparable, extras_of, widths_of
from halfstep.nets.carried import carry
from halfstep.nets.pruning import checked_pairs, evenly, pairs_of, partners, shallower
from halfstep.nets.watched import Projected, projector
from halfstep.noise import untouched
from halfstep.schema import literal
from halfstep.weighting import WEIGHTINGS

SHRUNK = "shrunk"
"""The stage's name."""
Pair = tuple[nn.Module, int, nn.Module, int]
"""A block of the student and its width, the teacher's and its."""


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """A smaller network that predicts what its teacher predicts, at every time."""

    depth: CountOrNone = 0
    """Blocks beside the middle one that a U-ViT student keeps, with the teacher's weights: even, fewer
    than the teacher has; 0 says nothing."""
    keep: tuple[int, ...] = ()
    """Which pairs of blocks it keeps, 0 (outermost) to depth / 2 - 1 of the teacher; by default `choose`
    says."""
    choose: Literal["score", "even"] = "score"
    """Which pairs are kept: score, those without which this loss rises most, on the data; even, evenly
    spread."""
    student: dict[str, str] = field(default_factory=dict)
    """Other options of the student, as NAME VALUE pairs: embed_dim 32 num_heads 2; layers_per_block 1.
    The rest are as the teacher's. A U-Net starts from the teacher's weights where shapes agree, any other
    untrained."""
    updates: Updates = 10_000
    """Optimiser updates."""
    weighting: str = "truncated-snr"
    """Loss weight on the x0 error: constant, snr, truncated-snr, snr+1 or min-snr."""
    levels: CountOrNone = 0
    """Draw times from {1/levels, ..., 1}; 0 draws them from all of (0, 1), or from the schedule's table."""
    output: NotNegative = 0.9
    """Weight of the error to the teacher's prediction."""
    denoising: NotNegative | None = None
    """Weight of the error to the data; 0.1 by default, and 0 for a guided teacher, whose images are not
    the data's."""
    features: NotNegative | None = None
    """Weight of the mean error of the blocks' outputs, each over the energy of the teacher's; 0.1 by
    default, and 0 for a student whose blocks have no counterpart. A narrower student's go through a linear
    map that is trained with it."""
    mask: NotNegative = 0.0
    """Leave out features so many standard deviations from their mean (TinyFusion: 2); 0 keeps all."""
    drop_labels: Share | None = None
    """Share of samples that both see without their label, for guidance; 0.1 by default where the teacher
    has a null class or an empty text."""

    def __post_init__(self) -> None:
        hold_to_kinds(self)
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if self.output == 0 and self.denoising == 0:
            raise ConfigError(
                "output and denoising are both 0, so the student would put out nothing in particular: give "
                "one of them a weight, such as output=0.9"
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
                "depth is given twice: leave it out of student (there, a student begins untrained)"
            )
        if not (self.keep or self.depth or self.student):
            raise ConfigError(
                "nothing says how the student is smaller: give depth or keep for a U-ViT, or options of the "
                "student (command line: --depth 2, --keep 0 4, --student embed_dim 32)"
            )

    @property
    def unsettled(self) -> bool:
        """Whether the data is still to say which pairs are kept: see `training.settling.settled`."""
        return bool(self.depth and not self.keep and not self.student and self.choose == "score")

    def stages(self, teacher: Teacher, null: int | Tensor | None = None) -> Iterator[Stage]:
        """One stage; `null` is the label that means none, or the states of the empty text."""
        student = self.begun(teacher)
        matched = self._matched(teacher, student)
        objective = self.objective(teacher, null, matched)
        projected = matched and matched.projectors
        learner = Projected(student, projected) if projected else student
        yield Stage(SHRUNK, learner, objective, self.updates)

    def objective(
        self, teacher: Teacher, null: int | Tensor | None, matched: Matched | None = None
    ) -> Imitate:
        """What a student learns of this teacher."""
        if self.drop_labels and null is None:
            raise ConfigError(
                "drop_labels needs a teacher with a null class, or of texts: write drop_labels=0"
            )
        drop = self.drop_labels if self.drop_labels is not None else 0.1 * (null is not None)
        guided = _is_guided(teacher)
        if self.denoising and guided:
            raise ConfigError(
                "a guided teacher's images are not the data's, and denoising would pull the student back to "
                "them: write denoising=0"
            )
        denoising = self.denoising if self.denoising is not None else (0.0 if guided else 0.1)
        levels = levels_for(self.levels, teacher.schedule)
        return Imitate(
            teacher.freeze(), WEIGHTINGS[self.weighting], self.output, denoising, matched, levels, drop, null
        )  # fmt: skip

    def begun(self, teacher: Teacher) -> Denoiser:
        """The student as it begins."""
        student = teacher.twin()
        if self.student:
            student.net = self._built(student.net)
        else:
            student.net = shallower(student.net, self.kept(student.net))
        return student

    def kept(self, net: nn.Module) -> tuple[int, ...]:
        """The pairs of this teacher's blocks that the student keeps."""
        pairs = pairs_of(net)
        if self.depth and not 2 <= self.depth < 2 * pairs:
            most = (
                f"write an even number from 2 to {2 * pairs - 2}" if pairs > 1 else "give student"
            )
            raise ConfigError(
                f"a student of depth {self.depth} is no shallower than its teacher of depth {2 * pairs}: "
                f"{most}"
            )
        if self.unsettled:
            raise ConfigError(
                "which pairs of blocks are worth least is found on data: write choose='even' or keep=(0,), "
                "or take training.settling.settled(method, teacher, data)"
            )
        keep = checked_pairs(self.keep or evenly(pairs, self.depth // 2), pairs)
        if len(keep) == pairs:
            raise ConfigError(
                f"keep names all {pairs} pairs of blocks, so nothing would get smaller: leave one out"
            )
        return keep

    def _built(self, net: nn.Module) -> nn.Module:
        """A network of other options: fresh, but for what a U-Net takes over."""
        name, config = recipe(net)
        own = {key: literal(value) for key, value in self.student.items()}
        depth = {"depth": 2 * len(self.keep) or self.depth} if self.keep or self.depth else {}
        weight = next(iter(net.parameters()))
        with untouched(0):
            new = built_again(net, {**config, **depth, **own}).to(weight.device, weight.dtype)
        if _size(new) >= _size(net):
            raise ConfigError(
                f"the student has {_size(new):,} parameters and its teacher {_size(net):,}: ask for fewer in "
                "student, such as half the embed_dim"
            )
        if name == "unet":
            carry(new, net)
        return new

    def _matched(self, teacher: Teacher, student: Denoiser) -> Matched | None:
        theirs, net = _inside(teacher).net, student.net
        pairs = self._compared(theirs, net) if comparable(theirs, net) else []
        if self.features and not pairs:
            raise ConfigError(
                "features are compared block by block, and this student's have other places, or its blocks "
                "another number, than its teacher's: write features=0"
            )
        weight = self.features if self.features is not None else 0.1 * bool(pairs)
        if not weight:
            if self.mask:
                raise ConfigError(
                    "mask leaves out features, and this student's are not compared: write mask=0, or give "
                    "features a weight, such as 0.1"
                )
            return None
        ours, old = tuple(block for block, *_ in pairs), tuple(block for _, _, block, _ in pairs)
        narrower = any(width != wanted for _, width, _, wanted in pairs)
        projectors = _projectors(pairs, theirs) if narrower else ()
        return Matched(ours, old, extras_of(theirs), weight, self.mask, projectors)

    def _compared(self, theirs: nn.Module, net: nn.Module) -> list[Pair]:
        """Whose features are compared; nobody's where a U-Net has another number of blocks."""
        ours, old = blocks_of(net), blocks_of(theirs)
        places = list(range(len(old)))
        if len(ours) != len(old):
            if recipe(theirs)[0] != "uvit":
                return []
            pairs = pairs_of(theirs)
            keep = self.keep or evenly(pairs, pairs_of(net))
            places = partners(checked_pairs(keep, pairs), pairs)
        wide, wanted = widths_of(net), widths_of(theirs)
        return [
            (block, width, old[k], wanted[k])
            for block, width, k in zip(ours, wide, places, strict=True)
        ]


def _projectors(pairs: list[Pair], teacher: nn.Module) -> tuple[nn.Module, ...]:
    """A linear map of channels for each pair, the same in every run."""
    weight, tokens = next(teacher.parameters()), recipe(teacher)[0] == "uvit"
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def shape(width: int) -> list[int]:
        return [1, 1, width] if tokens else [1, width, 1, 1]

    with untouched(0):
        made = [projector(shape(ours), shape(old)) for _, ours, _, old in pairs]
    return tuple(one.to(weight.device, dtype) for one in made)


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _inside(teacher: Any) -> Denoiser:
    """The denoiser with the network, whatever guides it."""
    return cast(Denoiser, getattr(teacher, "denoiser", teacher))


def _is_guided(teacher: Any) -> bool:
    """Whether it puts out something else than the data's denoising: from outside, or by a scale as input."""
    if isinstance(teacher, Guided) and not isinstance(teacher.scale, Tensor):
        return teacher.scale != 1
    net = getattr(teacher, "net", None)
    made: Any = getattr(net, "recipe", ("", {}))
    return net is None or bool(made[1].get("guidance"))
