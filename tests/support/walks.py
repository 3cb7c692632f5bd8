"""Walks in memory, and walkers without a network."""

import torch

from halfstep.batch import Cond
from halfstep.data.latents.shards import Shards
from halfstep.data.walks.store import Walks
from halfstep.diffusion.samplers import walk_points
from halfstep.methods.diffusion.kept_walks import WalkSource


def kept(points, times):
    """Walks of these points, [walks, points, ...], in their own dtype."""
    return Walks(Shards((points.flatten(0, 1),)), tuple(times))


def source_of(teacher, noise, times, solver="ddim", points=None, **more):
    """A source whose walks of this noise are made already, unrounded."""
    numbers = tuple(range(len(times))) if points is None else points
    source = WalkSource(teacher, solver, times, numbers, **more)
    states = walk_points(teacher, noise, times, solver, numbers)
    source.walks = kept(states, [times[k] for k in numbers])
    return source


class Counting:
    """A walker whose walks say their number and the number of the point; counts what it walks."""

    def __init__(self, *, conditioned=True, scaled=False, **changes):
        self.conditioned, self.scaled, self.walked = conditioned, scaled, []
        self.key = {
            "teacher": "a" * 64,
            "network": "b",
            "solver": "ddim",
            "times": [1.0, 0.5, 0.0],
            "points": [0, 1, 2],
            "seed": 0,
            "conditions": "c" if conditioned else "",
            "guidance_scale": 1.0,
            "guidance_range": [1.0, 4.0] if scaled else None,
            "guidance_norm": 0,
            "clip": None,
            "clipping": "",
            "shape": [2],
            "precision": "fp32",
            "dtype": "float32",
            **changes,
        }

    def conditions(self, numbers):
        if not self.conditioned:
            return None
        n = torch.tensor(list(numbers))
        states = torch.stack([n, -n], 1)[:, :, None].half().float()
        scale = 1 + (n % 3).double() / 7 if self.scaled else None
        return Cond(n % 10, states, scale)

    def walk(self, numbers, cond):
        self.walked += [numbers]
        n = torch.tensor(list(numbers), dtype=torch.float32)
        if cond is not None:
            assert torch.equal(cond.label, (n % 10).long())
        k = torch.arange(len(self.key["points"]), dtype=torch.float32)
        values = n[:, None, None] + k[None, :, None] / 8 + torch.tensor([0.0, 0.5])
        # Rounded as sums are that depend on who shares a batch.
        return values + 2.0**-10 * len(numbers)
