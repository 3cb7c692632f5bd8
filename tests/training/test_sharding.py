"""Sharded runs of two and three processes: DTensors, and the numbers and files of one process."""

import copy
import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError
from halfstep.identity import digest_of, sha256_of
from halfstep.methods import Denoising, GuidedDistillation, Objective, Progressive
from halfstep.methods.stages import Stage
from halfstep.models.half_storage import on_same_weights
from halfstep.models.lora import Lora
from halfstep.models.rebuild import refuse_wrapped
from halfstep.training import train, TrainingConfig
from halfstep.training.batch_norm import update_batch_norm
from halfstep.training.classifiers.api import train_classifier
from halfstep.training.oom import naming_memory
from halfstep.training.run_folder import RunFolder
from halfstep.training.sharding import (
    _blocks,
    gathered,
    mesh_of,
    placed_all,
    refuse_settings,
    shard_stage,
)
from tests.support.guided import labelled_points, teacher_of
from tests.support.processes import CASES, launched, METHOD, narrower, OPTIONS
from tests.support.runs import (
    double_teacher,
    Doubled,
    doubled,
    halve,
    job,
    own,
    Scripted,
    squares,
    teacher,
    TRAINING,
)
from tests.support.user_networks import classifier, images

SCRIPT = '''
"""Run by every process of a launch."""

import json, os, sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import halfstep
from halfstep.identity import digest_of
from halfstep.models.lora import LoraNet
from halfstep.training import distributed, loop
from tests.support.runs import ProgressCallback, job
from tests.support.processes import narrower
from tests.training import test_sharding as case

folder, rank, world = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
found, states = {"weights": {}}, []
real = loop.update


def update(objective, student, state, *given, **options):
    """See what is sharded after the last update; the run's end makes the student whole."""
    done = real(objective, student, state, *given, **options)
    states[:] = [seen(state, objective)]
    return done


loop.update = update


def seen(state, objective):
    """What is no DTensor, and the numbers here and in all."""
    tensors = {name: v for name, v in state.tensors().items() if not name.startswith("step")}
    tensors |= {f"teacher.{k}": v for net in objective.networks for k, v in net.named_parameters()}
    here = sum(getattr(v, "to_local", lambda: v)().numel() for v in tensors.values())
    plain = sorted(name for name, v in tensors.items() if not isinstance(v, DTensor))
    bases = [net.base for net in state.student.modules() if isinstance(net, LoraNet)]
    base = [type(p).__name__ for each in bases for p in each.weights if not isinstance(p, DTensor)]
    kinds = sorted({name.partition(".")[0] for name in tensors})
    whole = sum(v.numel() for v in tensors.values())
    return {"plain": plain, "kinds": kinds, "share": here / whole, "base": base}


def keep(name, student):
    found["weights"][name] = {k: v.double().tolist() for k, v in student.denoiser.state_dict().items()}
    assert not any(isinstance(v, DTensor) for v in student.denoiser.state_dict().values())
    assert not any(isinstance(part, FSDPModule) for part in student.denoiser.modules())


def refused(act):
    try:
        act()
    except halfstep.HalfstepError as error:
        return f"{type(error).__name__}: {error}"


if world == 2:
    for name in case.CASES:
        keep(name, case.sharded(name, folder))
        if name == "whole":
            found["whole"] = states[0]
    digests = []

    def gate(student):
        digests.append(digest_of(student.denoiser))
        assert any(isinstance(v, DTensor) for v in student.denoiser.parameters())
        return bool(torch.isfinite(student.sample(2, steps=min(student.step_counts))).all())

    teacher = case.double_teacher()
    before = digest_of(teacher.denoiser)
    options = {"method": case.TWO, "pipeline": teacher}
    keep("two", case.run(folder / "two", job=job(shard=True, gate=gate), **options))
    assert digest_of(teacher.denoiser) == before
    assert all(p.requires_grad for p in teacher.denoiser.parameters())
    found["digests"] = digests
    keep("narrower", narrower(folder / "narrower", job=job(shard=True)))
    found["narrower"] = states[0]
    keep("guided", case.guided(folder / "guided", job(shard=True)))
    keep("trained", case.trained(folder / "trained", job(shard=True)))
    keep("normed", case.of_own("Normed", folder / "normed", job(shard=True)))
    keep("two loras", case.adapted(folder / "two loras", job(shard=True)))
    found["lora"] = states[0]
    half = case.adapted(folder / "half", job(shard=True), **case.HALF)
    found["half"] = half.sample(3).tolist()
    keep("resumed", case.resumed(folder / "resumed", job(shard=True), 8))
    found["muon"] = refused(lambda: case.run(folder / "muon", job=job(shard=True), optimiser="muon"))
    found["scalar"] = refused(lambda: case.of_own("Scalar", folder / "scalar", job(shard=True)))
    case.run(folder / "fp16", job=job(shard=True), precision="fp16", pipeline=None, data=None)
    case.run(folder / "bf16", job=job(shard=True), precision="bf16", pipeline=None, data=None)
else:
    keep("whole", case.sharded("whole", folder / "three"))
    found["whole"] = states[0]
    keep("resumed", case.resumed(folder / "resumed", job(shard=True, extend=True), 20))
    keep("begun by one", case.resumed(folder / "begun by one", job(shard=True, extend=True), 20))
distributed._destroy_group()  # what happens as the program ends
tasks = Path("/proc/self/task").glob("*/comm")
found["threads"] = sorted(path.read_text().strip() for path in tasks)
Path(sys.argv[2]).with_name(f"found-{world}-{rank}.json").write_text(json.dumps(found))
'''


HALF = {"precision": "bf16", "pipeline": None, "data": None}
TWO = Progressive(start=8, stop=2, updates=(5,))


def run(out, **options):
    """Distil the float64 teacher on float64 points."""
    start = {"method": METHOD, "pipeline": double_teacher(), "data": doubled(), **OPTIONS}
    return halve(out, **{**start, **options})


def sharded(name, folder, **options):
    return run(folder / name, job=job(shard=True), **CASES[name], **options)


def resumed(out, how, updates):
    """So many updates, in as many calls as one likes."""
    return run(out, job=how, method=replace(METHOD, updates=(updates,)), max_grad_norm=0.1)


def guided(out, job):
    """A student of every guidance scale, a network with an input more, and its halving."""
    x, cond = labelled_points(60)
    pipeline = teacher_of()
    pipeline.denoiser.double()
    method = GuidedDistillation(halving=Progressive(start=4, stop=2, updates=(20,)), updates=20)
    data = Doubled(x.clamp(-1, 1), cond.label, names=("a", "b", "c"))
    return halve(out, method=method, pipeline=pipeline, data=data, job=job, **OPTIONS)


def trained(out, job):
    training = replace(TRAINING, **OPTIONS)
    method = Denoising(updates=20)
    return train(double_teacher(), doubled(), out, method=method, training=training, job=job)


def adapted(out, job, **options):
    """Two LoRAs of a base, the second beginning as the first."""
    return run(out, method=TWO, lora=Lora(rank=2), job=job, **options)


class Normed(nn.Module):
    """Blocks in a list, of which two share a weight; a batch norm; a bias of fewer rows than processes."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, width), nn.Linear(width, 3, bias=False)
        self.norm, self.shift = nn.BatchNorm1d(width), nn.Parameter(torch.ones(1))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.blocks[2].weight = self.blocks[1].weight

    def forward(self, x, t, cond=None):
        h = self.norm(self.enter(torch.cat([x, t[:, None] / 1000], 1)))
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return self.leave(h) + self.shift


class Scalar(nn.Module):
    """A network with a parameter that is one number."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(()))

    def forward(self, x, t, cond=None):
        return self.scale * self.layer(x)


def own_teacher(name):
    pipeline = teacher(net=f"tests.training.test_sharding:{name}")
    pipeline.denoiser.double()
    return pipeline


def of_own(name, out, how):
    method = own(squares, updates=6)
    return run(out, method=method, pipeline=own_teacher(name), job=how)


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """What two and then three processes found; the folder of their runs, and of one process's."""
    folder = tmp_path_factory.mktemp("sharded")
    script, runs = folder / "script.py", folder / "runs"
    script.write_text(SCRIPT)
    runs.mkdir()
    found = {}
    resumed(runs / "begun by one", job(), 8)
    for world in (2, 3):
        status, out, err = launched(str(script), str(runs), str(script), processes=world)
        assert (status, err) == (0, ""), out + err
        files = [folder / f"found-{world}-{rank}.json" for rank in range(world)]
        found[world] = [json.loads(file.read_text()) for file in files]
        if world == 2:
            shutil.copytree(runs / "resumed", runs / "went on alone")
    return found, runs


def one(name, out):
    """The same run in this process."""
    if name in CASES:
        return run(out, **CASES[name])
    if name == "two":
        return run(out, method=TWO)
    others = {"narrower": narrower, "guided": guided, "trained": trained, "two loras": adapted}
    return others[name](out, job=job())


def furthest(weights, student):
    """The largest difference between the weights of a process and those of a student."""
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in weights.items()}
    state = student.denoiser.state_dict()
    assert tensors.keys() == state.keys()
    return max(float((tensors[k] - v).abs().max()) for k, v in state.items())


def losses(out):
    return [line["loss"] for line in RunFolder(out).metrics if "loss" in line]


@pytest.mark.slow
class TestSeveralProcesses:
    @pytest.mark.parametrize("name", [*CASES, "two", "narrower", "guided", "trained", "two loras"])
    def test_losses_and_weights_are_those_of_one(self, launches, tmp_path, name):
        found, runs = launches
        student = one(name, tmp_path / "one")
        for result in found[2]:
            assert furthest(result["weights"][name], student) < 1e-11
        assert losses(runs / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
        files = [
            sorted(p.relative_to(at) for p in at.rglob("*"))
            for at in (runs / name, tmp_path / "one")
        ]
        assert files[0] == files[1]

    def test_so_are_those_of_three(self, launches, tmp_path):
        found, runs = launches
        student = one("whole", tmp_path / "one")
        for result in found[3]:
            assert furthest(result["weights"]["whole"], student) < 1e-11
        assert losses(runs / "three" / "whole") == pytest.approx(losses(tmp_path / "one"), rel=1e-9)

    @pytest.mark.parametrize("world, name", [(2, "whole"), (2, "narrower"), (3, "whole")])
    def test_weights_moments_average_and_teacher_are_dtensors(self, launches, world, name):
        """Each process has about its share: of few rows the first ones have more."""
        for result in launches[0][world]:
            assert result[name]["plain"] == []
            assert result[name]["kinds"] == [
                "average",
                "exp_avg",
                "exp_avg_sq",
                "student",
                "teacher",
            ]
            assert result[name]["share"] == pytest.approx(1 / world, rel=0.3)
        assert sum(result[name]["share"] for result in launches[0][world]) == pytest.approx(1)

    def test_a_run_goes_on_with_another_number_of_processes_sharded_or_not(
        self, launches, tmp_path
    ):
        found, runs = launches
        resumed(tmp_path / "one", job(), 8)
        student = resumed(tmp_path / "one", job(extend=True), 20)
        for result in found[3]:
            assert furthest(result["weights"]["resumed"], student) < 1e-11
            assert furthest(result["weights"]["begun by one"], student) < 1e-11
        alone = resumed(runs / "went on alone", job(extend=True), 20)
        weights = {k: v.tolist() for k, v in alone.denoiser.state_dict().items()}
        assert furthest(weights, student) < 1e-11

    def test_a_gate_sees_the_weights_that_are_saved(self, launches):
        found, runs = launches
        files = [
            runs / "two" / "stages" / name / "pipeline" for name in ("0004-steps", "0002-steps")
        ]
        saved = [sorted(storage.load(file)[0].items()) for file in files]
        digests = [sha256_of(["Denoiser", *chain.from_iterable(tensors)]) for tensors in saved]
        assert all(result["digests"] == digests for result in found[2])

    def test_statistics_of_a_batch_norm_are_those_of_the_averaged_weights(self, launches):
        first, second = (result["weights"]["normed"] for result in launches[0][2])
        assert first == second
        student = own_teacher("Normed").denoiser.train()
        weights = {name: torch.tensor(value) for name, value in first.items()}
        student.load_state_dict(weights)
        stage = Stage("stage-0", student, Scripted(squares), 6)
        update_batch_norm(stage, doubled(), torch.device("cpu"), seed=TRAINING.seed, index=0)
        for name, value in student.named_buffers():
            assert torch.allclose(value.double(), weights[name].double(), rtol=1e-6), name

    def test_what_cannot_be_sharded_is_refused_by_all(self, launches):
        for result in launches[0][2]:
            assert result["muon"].startswith("ConfigError") and "adamw" in result["muon"]
            assert result["scalar"].startswith("ConfigError") and "'scale'" in result["scalar"]

    def test_of_a_lora_the_base_is_sharded_and_the_adapter_is_not(self, launches):
        for result in launches[0][2]:
            assert result["lora"]["plain"] and result["lora"]["base"] == []
            assert all(".lora_" in name for name in result["lora"]["plain"])

    def test_so_is_a_base_in_half_precision(self, launches, tmp_path):
        found, runs = launches
        student = adapted(tmp_path / "one", job(), **HALF)
        assert losses(runs / "half") == pytest.approx(losses(tmp_path / "one"), rel=0.02)
        for result in found[2]:
            assert torch.allclose(torch.tensor(result["half"]), student.sample(3), atol=0.05)

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
    def test_no_thread_of_the_group_outlives_it(self, launches):
        for result in launches[0][2] + launches[0][3]:
            assert not [name for name in result["threads"] if "gloo" in name]

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_a_run_in_half_precision(self, launches, tmp_path, precision):
        _, runs = launches
        halve(tmp_path / "one", method=METHOD, precision=precision, **OPTIONS)
        assert losses(runs / precision) == pytest.approx(losses(tmp_path / "one"), rel=0.02)


@pytest.fixture(scope="module")
def mesh():
    """The mesh of a group of this process alone."""
    import torch.distributed.nn.functional  # with the default group of its import

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield mesh_of(torch.device("cpu"), 1)
    torch.distributed.destroy_process_group()


class TestSharding:
    def test_blocks_are_members_of_lists_of_one_class_inner_ones_first(self):
        net = Normed(8)
        assert _blocks(net) == [net.blocks[0]]  # the others share a weight
        mixed = nn.ModuleList([nn.Linear(2, 2), nn.Dropout()])
        outer = nn.ModuleList(
            nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]), nn.ReLU()) for _ in range(2)
        )
        net = nn.ModuleDict({"outer": outer, "mixed": mixed, "idle": nn.ModuleList([nn.ReLU()])})
        assert _blocks(net) == [outer[1][0][0], outer[0][0][0], outer[1], outer[0]]

    def test_blocks_of_diffusers_are_its_transformer_and_resnet_blocks(self):
        from diffusers import UNet2DConditionModel

        net = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8,
            norm_num_groups=4, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        kinds = {type(block).__name__ for block in _blocks(net)}
        assert {"BasicTransformerBlock", "ResnetBlock2D", "Transformer2DModel"} <= kinds
        assert not kinds & {"Linear", "Dropout", "CrossAttnDownBlock2D"}

    def test_an_alias_has_the_same_memory_and_its_own_modules(self):
        net = Normed(4)
        net.shift.requires_grad_(False)
        other = on_same_weights(net)
        for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
            assert a.data_ptr() == b.data_ptr()
        assert other.blocks[2].weight is other.blocks[1].weight is not net.blocks[1].weight
        assert not other.shift.requires_grad and other.norm.weight.requires_grad

    def test_a_copy_of_a_sharded_network_is_whole_and_has_its_marks(self, mesh):
        denoiser, plain = double_teacher().denoiser, double_teacher().denoiser
        denoiser.net.model.leave.bias.requires_grad_(False)
        shard_stage(Stage("s", denoiser, Objective(), 1), mesh, torch.device("cpu"))
        shard_stage(Stage("s", denoiser, Objective(), 1), mesh, torch.device("cpu"))  # as it is
        assert all(hasattr(p, "full_tensor") for p in denoiser.parameters())
        x, t = torch.randn(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
        assert torch.equal(denoiser(x, t).x0, plain(x, t).x0)
        denoiser.float()  # stays as it is
        assert digest_of(denoiser) == digest_of(plain)
        with pytest.raises(ConfigError, match="fully_shard"):
            refuse_wrapped(denoiser)
        copied = denoiser.freeze().trainable_copy()
        refuse_wrapped(copied)
        assert digest_of(copied) == digest_of(plain) and type(copied.net) is type(plain.net)
        assert [n for n, p in copied.named_parameters() if not p.requires_grad] == [
            "net.model.leave.bias"
        ]
        assert copied.training and not copy.deepcopy(denoiser).net.training
        denoiser.net.requires_grad_(True)
        assert all(p.requires_grad for p in copy.deepcopy(denoiser).parameters())

    def test_tensors_are_placed_and_gathered(self, mesh):
        denoiser = double_teacher().denoiser
        before = {name: value.clone() for name, value in denoiser.state_dict().items()}
        shard_stage(Stage("s", denoiser, Objective(), 1), mesh, torch.device("cpu"))
        doubles = {name: 2 * value for name, value in before.items()}
        denoiser.load_state_dict(placed_all(doubles, denoiser.state_dict()))
        got = gathered(denoiser.state_dict(), keep=True)
        assert got.keys() == before.keys()
        assert all(torch.equal(got[name], doubles[name]) for name in got)
        assert gathered(denoiser.state_dict(), keep=False) == {}
        other = placed_all(
            {"net.model.enter.bias": torch.ones(1), "more": torch.ones(2)}, denoiser.state_dict()
        )
        assert not any(hasattr(value, "full_tensor") for value in other.values())


class TestRefusals:
    def test_one_process_has_nothing_to_shard_over(self, monkeypatch, tmp_path):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.raises(ConfigError, match="torchrun"):
            halve(tmp_path / "run", job=job(shard=True))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        "options, named",
        [
            ({"optimiser": "muon"}, "adamw"),
            ({"optimiser": "adamw-8bit"}, "adamw"),
            ({"compile": True}, "--compile"),
        ],
    )
    def test_settings_that_need_whole_weights(self, options, named):
        refuse_settings(TrainingConfig())
        with pytest.raises(ConfigError, match=named):
            refuse_settings(TrainingConfig(**options))

    @pytest.mark.parametrize(
        "net, named",
        [
            (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "float64"),
            (Scalar(2), "'scale'"),
        ],
    )
    def test_weights_that_cannot_be_divided(self, mesh, net, named):
        stage = Stage("s", Denoiser(net, Cosine(), V()), Objective(), 1)
        with pytest.raises(ConfigError, match=named):
            shard_stage(stage, mesh, torch.device("cpu"))
        assert not any(hasattr(p, "full_tensor") for p in net.parameters())

    def test_a_command_that_shards_nothing(self, monkeypatch, tmp_path):
        with pytest.raises(ConfigError, match="shards no networks"):
            train_classifier(classifier(), images(), tmp_path / "run", job=job(shard=True))
        assert not (tmp_path / "run").exists()

    def test_memory_that_runs_out_of_one_process_alone(self):
        """The others wait in the forward, so no smaller micro-batch can be tried."""
        for size, advice in ((8, "add --micro-batch-size 4"), (1, "not even one")):
            with pytest.raises(ConfigError, match=advice), naming_memory(size, None):
                raise torch.OutOfMemoryError("CUDA out of memory")
