"""Cost: counted by hand, and measured side by side."""

import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine, Karras, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import _shortened, Cost, cost, multiply_adds, peak_bytes
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.schema import build as built, plain
from tests.support.denoisers import Wobbly
from tests.support.progress import Ledger

SHAPE = (3, 4, 6)


class Net(nn.Module):
    """A convolution, and a linear layer over each row of pixels: counted by hand below."""

    def __init__(self, wait=0.0, log=None, name=""):
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(6, 7, bias=False)
        self.back = nn.Conv2d(5, 3, 1)
        self.wait, self.log, self.name = wait, log, name

    def forward(self, x, t, cond=None):
        if self.log is not None:
            self.log.append((self.name, len(x)))
        time.sleep(self.wait)
        hidden = self.conv(x)
        return self.back(hidden + self.line(hidden)[..., :6])


PARAMETERS = (3 * 5 * 9 + 5) + 6 * 7 + (5 * 3 + 3)
MULTIPLY_ADDS = 4 * 6 * (3 * 5 * 9) + 5 * 4 * (6 * 7) + 4 * 6 * (5 * 3)


def pipeline(**options):
    return Pipeline(Denoiser(Net(**options), Cosine(), V()), SHAPE)


def test_calls_parameters_and_multiply_adds_are_those_counted_by_hand():
    teacher = pipeline()
    result = cost(
        [(teacher, "ddim", 4), (teacher, "heun", 4), (teacher, "dpmpp-2m", 1)],
        batches=(2,),
        rounds=1,
    )
    assert [row_cost.calls for row_cost in result] == [4, 7, 1]
    assert [row_cost.parameters for row_cost in result] == [PARAMETERS] * 3
    assert [row_cost.multiply_adds for row_cost in result] == [n * MULTIPLY_ADDS for n in (4, 7, 1)]


def test_multiply_adds_of_a_uvit_counted_by_hand_with_its_attention():
    config = {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 11,
    }
    denoiser = Denoiser(build("uvit", config), Cosine(), V())
    labelled = Pipeline(denoiser, (1, 8, 8), class_names=tuple("0123456789"), null=10)
    tokens, width = 16 + 2, 16
    block = tokens * (4 + 8) * width**2 + 2 * tokens**2 * width  # qkv and proj, mlp; attention
    skip = tokens * 2 * width**2
    patches = 16 * 4 * width
    decoder, final = 16 * width * 4, 64 * 9
    assert multiply_adds(labelled) == 3 * block + skip + patches + decoder + final


def test_every_way_is_timed_once_a_round_and_in_turn():
    log = []
    ways = [(pipeline(log=log, name=n), "ddim", steps) for n, steps in (("a", 2), ("b", 1))]
    timed = Ledger()
    cost(ways, batches=(1, 5), rounds=3, progress=timed)
    assert timed.steps == 2 * 3 * 2
    once = [("a", 1), ("b", 1)], [("a", 1), ("a", 1), ("b", 1)]
    for k, size in ((0, 1), (1, 5)):
        begin = k * (2 + 3 * 3)
        batch_calls = log[begin : begin + 11]
        expected = once[0] + 3 * once[1]
        assert batch_calls == [(name, size) for name, _ in expected]


def test_seconds_a_sample_are_those_spent_in_the_calls_over_the_batch():
    slow = pipeline(wait=0.01)
    few, many = cost([(slow, "ddim", 2), (slow, "ddim", 8)], batches=(1, 4), rounds=3)
    assert many.seconds_per_sample[1] >= 0.08
    assert 2 < many.seconds_per_sample[1] / few.seconds_per_sample[1] < 8  # 4, on an idle machine
    assert 0.02 <= many.seconds_per_sample[4] < many.seconds_per_sample[1]


class Wide(nn.Module):
    """Holds a large tensor of known size for a while, and a parameter of another."""

    def __init__(self, megabytes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(250_000))  # 1 MB
        self.megabytes = megabytes

    def forward(self, x, t, cond=None):
        buffer = torch.empty(len(x), self.megabytes, 250_000)
        del buffer
        return x * 0.5


@pytest.mark.parametrize(("megabytes", "batch"), [(3, 2), (2, 5)])
def test_peak_memory_is_what_is_held_at_once_with_the_weights(megabytes, batch):
    wide = Pipeline(Denoiser(Wide(megabytes), Cosine(), V()), SHAPE)
    expected = (1 + megabytes * batch) * 1_000_000
    result = peak_bytes(wide, "ddim", 2, batch=batch)
    assert expected <= result < expected + 50_000


def test_peak_memory_is_reached_within_three_steps():
    """So sampling in many steps needs no more, and is not measured."""
    log = []
    teacher = pipeline(log=log)
    result = {steps: peak_bytes(teacher, "dpmpp-2m", steps, batch=64) for steps in (1, 2, 3, 4, 64)}
    assert len(log) == 1 + 2 + 3 + 3 + 3
    assert result[1] <= result[2] <= result[3]
    assert result[3] == result[4] == result[64]


class Watched(nn.Module):
    """Writes down the times that it is told."""

    def __init__(self, log):
        super().__init__()
        self.log = log
        self.line = nn.Linear(6, 6)

    def forward(self, x, t, cond=None):
        self.log.append(float(t[0]))
        return self.line(x)


@pytest.mark.parametrize("sampler", ["dpmpp-3s", "dpm-fast", "euler-maruyama"])
def test_a_sampler_is_timed_on_its_own_grid(sampler):
    log = []
    teacher = Pipeline(Denoiser(Watched(log), VPLinear(), V(), time=NetTime(scale=1.0)), SHAPE)
    (result,) = cost([(teacher, sampler, 7)], batches=(2,), rounds=1)
    times = list(teacher.grid(7, sampler)[:-1])
    assert log[1:8] == pytest.approx(times)  # after the first call, which warms up
    short = 7 if sampler == "euler-maruyama" else 4  # of which fewer would lead nowhere
    assert log[8:-1] == pytest.approx(teacher.grid(short, sampler)[:-1])  # memory, then products
    assert result.calls == 7 and result.multiply_adds == 7 * 3 * 4 * 6 * 6
    few, many = (peak_bytes(teacher, sampler, steps, batch=64) for steps in (short, 30))
    assert few == many
    if sampler != "euler-maruyama":
        assert few > peak_bytes(teacher, sampler, 1, batch=64)


@pytest.mark.parametrize(
    "schedule, sampler, few",
    [
        (Cosine(), "dpm-fast", 4),
        (VPLinear(), "euler-maruyama", 8),
        (Karras(), "euler-maruyama", 16),
    ],
)
def test_memory_is_that_of_the_shortest_walk_that_leads_somewhere(schedule, sampler, few):
    """4 steps, or twice as many until it is not refused."""
    made = Pipeline(Denoiser(Net(), schedule, V()), SHAPE)
    assert [_shortened(made, sampler, steps).steps for steps in (64, few)] == [few, few]


def test_memory_of_a_scheduler_is_that_of_a_walk_that_it_takes():
    """The first steps of many, and the last, are a grid on which diffusers' PNDM goes astray."""
    log = []
    teacher = Pipeline(Denoiser(Watched(log), Cosine(), V(), time=NetTime(scale=1.0)), SHAPE)
    assert peak_bytes(teacher, "diffusers:PNDMScheduler", 40, batch=2) > 0
    assert len(log) == 41
    log.clear()
    assert peak_bytes(teacher, "diffusers:DDIMScheduler", 40, batch=2) > 0
    assert len(log) == 3


def test_the_terminal_and_the_environment_are_left_alone(capfd):
    before = dict(os.environ)
    assert peak_bytes(pipeline(), "ddim", 1, batch=1) > PARAMETERS * 4
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_peak_memory_that_cannot_be_told_is_none(monkeypatch):
    """A later torch may have no such list: then the report says that it does not know."""
    import torch.profiler

    class Later(torch.profiler.profile):
        profiler = property(lambda self: None, lambda self, value: None)

        def start(self):
            pass

        def stop(self):
            pass

    monkeypatch.setattr(torch.profiler, "profile", Later)
    assert peak_bytes(pipeline(), "ddim", 1, batch=1) is None


def test_what_cannot_be_measured_is_refused_before_a_second_is_spent():
    log = []
    student = replace(pipeline(log=log), times=(uniform(4),))
    with pytest.raises(ConfigError, match="not distilled for 3 steps"):
        cost([(student, "ddim", 4), (student, "ddim", 3)])
    with pytest.raises(ConfigError, match="grid of its own"):
        cost([(student, "ddim", 4), (student, "dpm-fast", 4)])
    for options in ({"batches": ()}, {"batches": (0,)}, {"rounds": 0}):
        with pytest.raises(ConfigError, match="rounds=5"):
            cost([(student, "ddim", 4)], **options)
    with pytest.raises(ConfigError, match="0 setups"):
        cost([])
    assert log == []


def test_a_cost_is_written_and_read():
    (result,) = cost([(pipeline(), "ddim", 1)], batches=(1, 3), rounds=1)
    table = plain(result)
    assert table["seconds_per_sample"].keys() == {"1", "3"} and built(table, Cost) == result


@pytest.mark.gpu
def test_peak_memory_on_a_gpu_leaves_out_what_lay_there_before():
    wide = Pipeline(Denoiser(Wide(3), Cosine(), V()), SHAPE).to("cuda")
    other = torch.zeros(10_000_000, device="cuda")
    result = peak_bytes(wide, "ddim", 2, batch=2)
    assert 7_000_000 <= result < 12_000_000
    assert len(other) == 10_000_000
    (both,) = cost([(pipeline().to("cuda"), "ddim", 2)], batches=(2,), rounds=1)
    assert both.multiply_adds == 2 * MULTIPLY_ADDS


def test_a_network_of_no_products_costs_none():
    denoiser = Denoiser(Wobbly().float(), Cosine(), V())
    assert multiply_adds(Pipeline(denoiser, SHAPE)) == 0


def test_memory_is_that_of_the_largest_batch_and_time_the_median(monkeypatch):
    wide = Pipeline(Denoiser(Wide(2), Cosine(), V()), SHAPE)
    [result] = cost([(wide, "ddim", 2)], batches=(3, 5, 1), rounds=1)
    assert result.peak_bytes == peak_bytes(wide, "ddim", 2, batch=5)
    assert result.peak_bytes > peak_bytes(wide, "ddim", 2, batch=3)
    clock = iter([0, 8, 100, 102, 200, 212, 300, 303, 400, 405])  # rounds of 8, 2, 12, 3, 5 seconds
    monkeypatch.setattr("halfstep.evaluation.metrics.cost.time.perf_counter", lambda: next(clock))
    [result] = cost([(pipeline(), "ddim", 1)], batches=(10,), rounds=5)
    assert result.seconds_per_sample == {10: 0.5}
