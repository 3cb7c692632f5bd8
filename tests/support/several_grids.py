"""A method whose one student serves 4, 2 and 1 steps of a grid of 8 fine ones."""

from dataclasses import dataclass

from halfstep.diffusion.time_grids import uniform
from halfstep.methods import Method, Objective, StagePlan

FINE = uniform(8)
GRIDS = FINE[::2], FINE[::4], FINE[::8]


class ToZero(Objective):
    """Any loss with a gradient."""

    def __call__(self, student, batch, draw):
        t = 0.25 + draw.uniform() / 2
        return student(draw.normal(batch.x0), t, batch.cond).x0.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Several(Method):
    """One stage with one student for every grid."""

    updates: int = 7

    def plan(self, teacher):
        return [StagePlan("ddim", self.updates, teacher_times=FINE, grids=GRIDS)]

    def stages(self, teacher):
        for stage in self.plan(teacher):
            yield stage.stage(teacher.denoiser.trainable_copy(), ToZero())
