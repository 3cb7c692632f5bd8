"""The teacher's walks that the stages of a run learn from: by what solver, from what noises, who makes them.

A walk is a function of the walks' seed and its number alone, and its noise is that of no sample that
`Pipeline.sample` draws from a seed: students are judged on noise that they have not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn, Tensor

from halfstep.batch import Cond
from halfstep.data import Data, NoData, rows as in_turn
from halfstep.data.walks.store import Key, Walks
from halfstep.data.walks.writing import walk_bytes
from halfstep.diffusion.denoiser import Teacher
from halfstep.diffusion.prediction import Clip
from halfstep.diffusion.samplers import calls, walk_points
from halfstep.diffusion.time_grids import Times
from halfstep.errors import ConfigError
from halfstep.identity import digest_of, sha256_of
from halfstep.methods.diffusion.walk_states import Drawn
from halfstep.methods.stages import Objective, teacher_calls
from halfstep.rng import Draw, key, sample_noise, sample_uniforms

NOISE, NUMBERS, ORDER = 0x4B455054, 0x4B455055, 0x4B455056
"""Set the randomness of kept walks apart from that of samples, updates and other walks."""
DRAWS = 2
"""Numbers of a walk, for its condition: a guidance scale."""


@dataclass(eq=False)
class WalkSource:
    """The walks that the stages of a run learn from: what they are, and, once they are made, the walks.

    teacher         who walks, guided or not
    solver          the name of a deterministic sampler
    times           its grid
    points          numbers of the grid's points that are kept, noise first
    clip            of every predicted image, or None
    guidance_scale  of the teacher, which the students fold in; 1 is off
    guidance_norm   of its guidance
    half            kept in float16
    make            makes so many walks and reads them; the run gives it before its first update
    """

    teacher: Teacher
    solver: str
    times: Times
    points: tuple[int, ...]
    clip: Clip | None = None
    guidance_scale: float = 1.0
    guidance_norm: int = 0
    half: bool = False
    make: Callable[[int], Walks] | None = None
    walks: Walks | None = field(default=None, init=False)

    def up_to(self, count: int) -> Walks:
        """The first `count` walks, or more; all processes of a run ask for as many at once.

        Args:
            count: 1 or more.

        Raises:
            ConfigError: there are fewer, and no run that makes more.
        """
        if self.walks is None or len(self.walks) < count:
            if self.make is None:
                raise ConfigError(
                    f"{count:,} walks are needed, and there are {len(self.walks or ()):,}: give walks=, or "
                    "make= that walks the teacher"
                )
            self.walks = self.make(count)
        return self.walks

    @property
    def forwards(self) -> int:
        """The cost of a walk in forwards."""
        return calls(self.solver, len(self.times) - 1) * teacher_calls(self.teacher)

    def disk(self, count: int, data: Data) -> int:
        """The bytes of so many walks on the disk.

        Args:
            count: of walks.
            data: of their conditions.
        """
        dtype, cond = "float16" if self.half else "float32", data.batch(torch.zeros(1).long()).cond
        return count * walk_bytes(len(self.points), data.shape, dtype, cond)

    @property
    def network(self) -> nn.Module:
        """The network that walks, without guidance."""
        return self.teacher.unguided if self.guidance_scale != 1 else self.teacher  # type: ignore[return-value]


PARTS = 10
"""Equal parts of a stage, at whose beginnings new walks are added."""


@dataclass(frozen=True)
class WalkOrder:
    """The walks and segments that each update of a stage reads, a function of (seed, stage, update).

    begin    walks at the beginning of the stage
    new      walks that are added in its course, a ninth after each tenth
    updates  of the stage
    """

    begin: int = 1
    new: int = 0
    updates: int = 1

    def pairs(self, draw: Draw, segments: int) -> tuple[Tensor, Tensor]:
        """The walk and the segment of each row: all pairs in turn, in an order of (seed, stage, update).

        Args:
            draw: of an update of training.
            segments: of a walk.
        """
        assert draw.place is not None
        seed, stage, update = draw.place
        part = self._part(update)
        since = -(-part * self.updates // PARTS)  # the order begins anew where walks are added
        pairs = self.walks_at(update) * segments
        order = in_turn(key(seed, stage, ORDER), part, update - since, draw.whole, pairs)
        chosen = order[draw.rows]
        return chosen // segments, chosen % segments

    def walks_at(self, update: int) -> int:
        """The number of walks that an update chooses from.

        Args:
            update: of the stage, from 0.
        """
        return self.begin + self.new * self._part(update) // (PARTS - 1)

    def _part(self, update: int) -> int:
        return min(PARTS * update // max(self.updates, 1), PARTS - 1) if self.new else 0


class FromWalks(Objective):
    """An objective that learns from kept walks, and reads the shape of a batch alone.

    source  the walks
    order   those that each update reads
    made    walks that are made for its stage, and paid for
    """

    reads_walks: ClassVar[bool] = True
    source: WalkSource
    order: WalkOrder
    made: int

    @property
    def networks(self) -> list[nn.Module]:
        return [self.source.network]


@dataclass(eq=False)
class TeacherWalker:
    """Makes the walks of a source: a `halfstep.data.walks.writing.Walker`.

    objective  gives conditions what it draws for them, such as a guidance scale
    data       of the conditions
    seed       of the walks
    like       a tensor of the dtype and on the device of samples
    precision  of the networks' arithmetic, by name
    guidance_range  of the scales that the network takes as an input, or None
    """

    source: WalkSource
    objective: Objective
    data: Data
    seed: int
    like: Tensor
    precision: str = "fp32"
    guidance_range: tuple[float, float] | None = None

    @cached_property
    def key(self) -> Key:
        """All that the walks depend on but their number."""
        source, clip = self.source, self.source.clip
        denoiser, scales = source.teacher.unguided, self.guidance_range
        about = (denoiser.schedule, denoiser.parameterisation, denoiser.time)
        cond = self.conditions(range(1))
        plain = cond is None or not (set(cond.named()) - {"guidance_scale"})
        return {
            "teacher": digest_of(denoiser),
            "network": sha256_of(map(repr, about)),
            "solver": source.solver,
            "times": list(source.times),
            "points": list(source.points),
            "seed": self.seed,
            "conditions": "" if plain else self.data.fingerprint(),
            "guidance_scale": source.guidance_scale,
            "guidance_range": None if scales is None else list(scales),
            "guidance_norm": source.guidance_norm,
            "clip": None if clip is None else clip.bound,
            "clipping": "" if clip is None else clip.kind,
            "shape": list(self.data.shape),
            "precision": self.precision,
            "dtype": "float16" if source.half else "float32",
        }

    def conditions(self, numbers: range) -> Cond | None:
        """The conditions of these walks: every one of the data's in as many walks as there are.

        Args:
            numbers: of walks.
        """
        count = len(self.data)
        rows = torch.cat([in_turn(self.seed, NUMBERS, walk, 1, count) for walk in numbers])
        data = self.data
        cond = data.conditions(rows) if isinstance(data, NoData) else data.batch(rows).cond
        draws = sample_uniforms(key(self.seed, NUMBERS), numbers, DRAWS)
        return self.objective.conditioned(
            None if cond is None else cond.to("cpu"), Drawn(list(draws.unbind(1)))
        )

    def walk(self, numbers: range, cond: Cond | None) -> Tensor:
        """The kept points of these walks, float [B, points, ...].

        Args:
            numbers: of walks.
            cond: their conditions.
        """
        source, device = self.source, self.like.device
        noise = sample_noise(key(self.seed, NOISE), numbers, self.data.shape).to(self.like)
        return walk_points(
            source.teacher, noise, source.times, source.solver, source.points,
            cond=None if cond is None else cond.to(device), clip=source.clip,
        )  # fmt: skip
