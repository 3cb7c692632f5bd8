"""States of walks from noise: of the teacher, one lane a row of the batch, or of the student itself.

Two consecutive steps of a teacher's trajectory give one target of a halving, and end where the next two
begin: a walk of N steps gives N / 2 targets at two teacher forwards each, as with data.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.data import rows as in_turn
from halfstep.data.no_data import NoData
from halfstep.diffusion.denoiser import level_of
from halfstep.diffusion.prediction import Prediction
from halfstep.diffusion.samplers.sample import wide
from halfstep.methods.diffusion.matching import Matching, matching, Places
from halfstep.methods.stages import Objective
from halfstep.models.eval_mode import evaluating
from halfstep.rng import Draw, key, sample_noise, sample_uniforms

NOISE, NUMBERS = 0x57414C4B, 0x57414C4C
"""Set the randomness of walks apart from that of updates."""
DRAWS = 3
"""Numbers of a walk: its jitter, and those for its condition (a guidance scale, a dropped label)."""


@dataclass(frozen=True)
class Walks:
    """Walks by number: the noise, the numbers and the condition of each are functions of its number.

    number  int64 [B], at least 0
    draws   float64 [B, DRAWS] in [0, 1)
    rows    int64 [B], of the conditions
    """

    number: Tensor
    draws: Tensor
    rows: Tensor

    @classmethod
    def none(cls, count: int) -> Self:
        """Rows that no walk has reached yet."""
        zeros = torch.zeros(count, dtype=torch.int64)
        return cls(zeros, torch.zeros(count, DRAWS, dtype=torch.float64), zeros)

    def __getitem__(self, rows: Tensor) -> "Walks":
        return Walks(self.number[rows], self.draws[rows], self.rows[rows])

    def put(self, rows: Tensor, others: "Walks") -> "Walks":
        """The walks, with others in these rows."""
        return Walks(
            self.number.index_copy(0, rows, others.number),
            self.draws.index_copy(0, rows, others.draws),
            self.rows.index_copy(0, rows, others.rows),
        )


@dataclass
class Drawn:
    """The numbers of walks as draws: one column after the other."""

    columns: list[Tensor]

    def uniform(self) -> Tensor:
        return self.columns.pop(0)


@dataclass(frozen=True)
class State:
    """States of walks, one a row.

    k  int64 [B], the number of the place: 0 is noise
    """

    x_t: Tensor
    places: Places
    cond: Cond | None
    walks: Walks
    k: Tensor


@dataclass(frozen=True)
class Course:
    """What the walks of a stage are functions of.

    like  a batch of the shape, dtype and device of x
    """

    objective: Objective
    data: NoData
    seed: int
    stage: int
    like: Tensor

    @property
    def match(self) -> Matching:
        """The objective that has places and targets."""
        return matching(self.objective)

    def walks(self, number: Tensor) -> Walks:
        """The walks of these numbers; every condition occurs once in as many walks as there are."""
        numbers, count = number.tolist(), len(self.data)
        draws = sample_uniforms(key(self.seed, self.stage, NUMBERS), numbers, DRAWS)
        rows = [int(in_turn(self.seed, self.stage, walk, 1, count)) for walk in numbers]
        return Walks(number, draws, torch.tensor(rows, dtype=torch.int64))

    def noise(self, walks: Walks, step: int | Tensor = 0) -> Tensor:
        """Unit noise of these walks; of a stochastic step, that of its number."""
        shape, seed = self.like.shape[1:], key(self.seed, self.stage, NOISE)
        if isinstance(step, int):
            noise = sample_noise(seed, walks.number.tolist(), shape, step=step)
        else:
            pairs = zip(walks.number.tolist(), step.tolist(), strict=True)
            noise = torch.cat([sample_noise(seed, [walk], shape, step=k) for walk, k in pairs])
        return noise.to(self.like)

    def begun(self, walks: Walks) -> Tensor:
        """The first states of these walks."""
        noise, schedule = self.noise(walks), self.match.schedule_of_x
        if schedule.variance_preserving:
            return noise
        t = self.places(walks, torch.zeros_like(walks.number))[0]
        return level_of(schedule, t, noise).sigma * noise

    def places(self, walks: Walks, k: Tensor) -> Places:
        """The k-th places of these walks."""
        jitter = walks.draws[:, 0].to(self.like.device, wide(self.like))
        return self.match.walk_places(k.to(self.like.device), jitter)

    def state(self, x: Tensor, walks: Walks, k: Tensor) -> State:
        """The states x of these walks, with their places and conditions."""
        device = self.like.device
        columns = walks.draws[:, 1:].to(device, wide(self.like)).unbind(1)
        cond = self.data.conditions(walks.rows)
        cond = self.objective.conditioned(
            None if cond is None else cond.to(device), Drawn(list(columns))
        )
        return State(x, self.places(walks, k), cond, walks, k)

    def landing(self, state: State, pred: Prediction) -> Tensor:
        """The next states, where a step with this prediction lands."""
        fresh: Callable[[], Tensor] = lambda: self.noise(state.walks, state.k + 1)  # noqa: E731
        return self.match.landing(state.x_t, state.places, pred, fresh)


@dataclass
class Lanes:
    """Rows of a batch that each walk their own trajectory of M places, one place an update.

    At update u row j of B is at place (u + j M // B) mod M, so that a batch mixes all places, and begins a
    new walk when one ends.  The states are only a cache: walking from the noise again, in batches of the same
    shape, gives those of any update to the same bits.
    """

    course: Course
    rows: slice
    whole: int
    update: int | None = None
    """The update that `x` and `walks` are for."""
    x: Tensor = field(init=False)
    walks: Walks = field(init=False)

    def at(self, update: int) -> State:
        """The states of this update."""
        if update != self.update:
            self.x, self.walks = torch.zeros_like(self.course.like), Walks.none(len(self._numbers))
            for earlier in range(update - self._length + 1, update):
                self.keep(earlier, self._begin(earlier))
        return self._begin(update)

    def keep(self, update: int, state: State, target: Prediction | None = None) -> None:
        """Step to the states of the next update.

        target  at these states, if it is known
        """
        pred = self._match.step_prediction(state.x_t, state.places, state.cond, target)
        self.x, self.walks = self.course.landing(state, pred), state.walks
        self.update = update + 1

    @property
    def _match(self) -> Matching:
        return self.course.match

    @property
    def _length(self) -> int:
        return self._match.walk_length

    @property
    def _numbers(self) -> Tensor:
        """The rows' numbers in the whole batch."""
        return torch.arange(self.rows.start, self.rows.stop)

    def _begin(self, update: int) -> State:
        """The states of an update, after new walks began in the rows whose walks have ended."""
        rows, length = self._numbers, self._length
        steps = update + rows * length // self.whole
        k, number = steps % length, steps // length * self.whole + rows
        x, walks, new = self.x, self.walks, (k == 0).nonzero()[:, 0]
        # Before the first update some rows are on walks of negative numbers, which end unread.
        new = new[number[new] >= 0]
        if len(new):
            fresh = self.course.walks(number[new])
            walks = walks.put(new, fresh)
            x = x.index_copy(0, new.to(x.device), self.course.begun(fresh))
        return self.course.state(x, walks, k)


def of_student(course: Course, student: Any, draw: Draw, update: int) -> State:
    """The states of walks of the student itself with its present weights.

    Row j of update u is state u B + j in the sequence of all walks' states, each of M places.
    """
    match, like = course.match, course.like
    numbers = update * draw.whole + torch.arange(draw.rows.start, draw.rows.stop)
    walk, k = numbers // match.walk_length, numbers % match.walk_length
    first = int(walk[0])
    walks = course.walks(torch.arange(first, int(walk[-1]) + 1))
    x, own = course.begun(walks), (walk - first).to(like.device)
    x_t = x[own]
    with torch.no_grad(), evaluating(student):
        for place in range(match.walk_length - 1):
            state = course.state(x, walks, torch.full_like(walks.number, place))
            guess = match.guess(student, x, state.places, state.cond)
            x = course.landing(state, match.sampled(x, state.places, guess))
            here = (k == place + 1).to(like.device).reshape(-1, *[1] * (x.ndim - 1))
            x_t = torch.where(here, x[own], x_t)
    return course.state(x_t, walks[walk - first], k)
