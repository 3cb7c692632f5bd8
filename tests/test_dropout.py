"""What is dropped out depends on seed, stage, update, process and micro-batch, and not on the noise."""

import torch
from torch import nn

from halfstep.training import TrainingConfig
from halfstep.training.checkpoint import State
from halfstep.training.distributed import Processes
from halfstep.training.optimiser import Optimiser
from halfstep.training.update import update
from tests.support.runs import points


def masks(rank, *, world=2, seed=0, stage=0, done=0):
    """What each micro-batch of a process drops, as a text; and its two seeds: dropout's and the noise's."""
    patterns, seeds = [], []
    student = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    processes = Processes("cpu")
    processes.rank, processes.world = rank, world
    settings = TrainingConfig(batch_size=4 * world, micro_batch_size=2, seed=seed)

    def objective(student, batch, draw):
        dropped = student[1](torch.ones(64)) == 0
        patterns.append("".join(str(int(zero)) for zero in dropped))
        seeds.append((torch.initial_seed(), draw.generator.initial_seed()))
        return student(batch.x0).square().mean(1)

    state = State(student, Optimiser(student, settings, fused=False), None, None, update=done)
    options = {"settings": settings, "processes": processes, "stage": stage, "rate": 0.0}
    update(objective, student, state, points(), **options)
    assert len(patterns) == 2
    return patterns, seeds


def test_it_is_another_on_every_process_and_in_every_micro_batch():
    cases = [{}, {"seed": 1}, {"stage": 1}, {"done": 1}]
    every, seeds = [], []
    for case in cases:
        for rank in (0, 1):
            patterns, both = masks(rank, **case)
            every += patterns
            seeds += both
    assert len(every) == len(set(every)) == len(cases) * 4
    dropouts, noises = map(set, zip(*seeds, strict=True))
    assert not dropouts & noises and len(noises) == len(cases)


def test_it_is_the_same_again():
    assert masks(1, done=3) == masks(1, done=3)
