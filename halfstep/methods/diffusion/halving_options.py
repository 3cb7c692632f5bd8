"""Flat options, for the command line and TOML, of the halvings in a method that begins with another stage."""

from dataclasses import dataclass, replace

from halfstep.config.validate import NotNegative, Updates
from halfstep.diffusion.time_grids import GridName, Steps, Times
from halfstep.errors import ConfigError
from halfstep.methods.diffusion.halving_checks import check_updates
from halfstep.methods.diffusion.progressive import Progressive


@dataclass(frozen=True, kw_only=True)
class HalvingOptions:
    """Halve the number of sampling steps after the first stage."""

    start: Steps = 64
    """Steps the first halving's teacher is sampled with: `stop` times a power of two."""
    stop: Steps = 1
    """Steps the last student takes; as many as `start` halves nothing."""
    halving_updates: tuple[Updates, ...] | None = None
    """Updates of the halvings: one number for all (twice that for 2 steps and for 1), or one each. By the
    data: a sixteenth of a teacher's default."""
    grid: GridName = "auto"
    """Where the teacher's steps lie; a student's lie on every other one of them. auto: trailing on a table
    of levels, and uniform on any other schedule."""
    times: Times = ()
    """A grid given as start + 1 times, noise first; overrides `grid`."""
    target_clip: NotNegative = 0.0
    """Clip the teacher's images to [-target_clip, target_clip] at every step of a target of the halvings.
    Write 1 where its pipeline clips. 0 does not clip (the paper)."""

    def halvings(self, weighting: str) -> Progressive | None:
        """The halvings with this weighting; None where there are no steps to halve."""
        if self.start == self.stop:
            self._refuse_unused()
            return None
        halving = Progressive(
            start=self.start,
            stop=self.stop,
            updates=(0,),
            weighting=weighting,
            grid=self.grid,
            times=self.times,
            target_clip=self.target_clip,
        )
        if self.halving_updates is not None:
            check_updates(self.halving_updates, self.start, halving.counts, name="halving_updates")
        return replace(halving, updates=self.halving_updates)

    def _refuse_unused(self) -> None:
        for name in ("times", "target_clip"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} is for halvings, and start={self.start}, stop={self.stop} halves nothing: "
                    "leave it out"
                )
