"""Two processes do what one does: the same losses, the same weights, one that writes, a clean end."""

import json
import re
from pathlib import Path

import pytest
import torch

import halfstep
from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.training.distributed import pick_device, Processes
from halfstep.training.run_folder import RunFolder
from tests.support.processes import CASES, launched, METHOD, narrower, OPTIONS
from tests.support.runs import bits, double_teacher, doubled, everything, halve

SCRIPT = '''
"""Run by both processes: everything that needs two, in one launch."""

import gc, json, os, signal, sys, weakref
from pathlib import Path

folder = Path(sys.argv[1])
rank = int(os.environ["RANK"])
touched = []


def audit(event, args):
    """What this process changes on the disk."""
    changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
    if event == "open":
        changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if changes and str(args[0]).startswith(str(folder)):
        touched.append(f"{event} {args[0]}")


sys.addaudithook(audit)

import torch

import halfstep
from halfstep.training import distributed, Stopped
from tests.support.processes import CASES, METHOD, narrower, OPTIONS
from tests.support.runs import double_teacher, doubled, halve, job, ProgressCallback


def run(name, **options):
    data = doubled()
    return halve(folder / name, method=METHOD, pipeline=double_teacher(), data=data, **OPTIONS, **options)


def weights(student):
    return {k: v.double().tolist() for k, v in student.denoiser.state_dict().items()}


found = {"weights": {name: weights(run(name, **options)) for name, options in CASES.items()}}
found["narrower"] = weights(narrower(folder / "narrower"))
assert (torch.distributed.get_world_size(), torch.distributed.get_backend()) == (2, "gloo")
found["rank"] = torch.distributed.get_rank()


class Asking(ProgressCallback):
    """The second process is asked to stop, and only that one."""

    def step(self, update, rate):
        if update == 9 and rank == 0:
            os.kill(int((folder / "pid-1").read_text()), signal.SIGTERM)


(folder / f"pid-{rank}").write_text(str(os.getpid()))
torch.distributed.barrier()
try:
    run("stopped", job=job(callback=Asking()))
except Stopped as error:
    found["stopped"] = str(error)
found["went on"] = weights(run("stopped"))

try:
    run("whole", weight_decay=0.7)
except halfstep.HalfstepError as error:
    found["refused"] = f"{type(error).__name__}: {error}"


def full(tensors, path, metadata=None):
    raise OSError(28, "No space left on device")


from halfstep import storage
real, storage.save_file = storage.save_file, full
try:
    run("full")
except halfstep.HalfstepError as error:
    found["full"] = str(error)
storage.save_file = real

students, alive = [], []


def gate(student):
    gc.collect()
    students.append(weakref.ref(student.denoiser.net))
    alive.append(sum(ref() is not None for ref in students))
    return True


four = {"method": halfstep.Progressive(start=32, stop=2, updates=(1,)), "batch_size": 2}
halve(folder / "many", job=job(gate=gate), **four)
found["alive"] = alive

mine = job(gate=lambda student: rank == 1 or len(student.times[0]) > 9)
halve(folder / "gated", job=mine, **four)
found["touched"] = touched

distributed._destroy_group()  # what happens as the program ends
tasks = Path("/proc/self/task").glob("*/comm")
found["threads"] = sorted(path.read_text().strip() for path in tasks)
Path(sys.argv[2]).with_name(f"found-{rank}.json").write_text(json.dumps(found))
'''


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("both")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    (folder / "runs").mkdir()
    status, out, err = launched(str(script), str(folder / "runs"), str(script))
    assert (status, err) == (0, ""), out + err
    return [
        json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)
    ], folder / "runs"


def measured(out):
    return [line["loss"] for line in RunFolder(out).metrics if "loss" in line]


class TestTwoProcesses:
    def test_there_are_two(self, both):
        assert [result["rank"] for result in both[0]] == [0, 1]

    @pytest.mark.parametrize("case", CASES)
    def test_losses_and_weights_are_those_of_one(self, both, tmp_path, case):
        (first, second), folder = both
        one = tmp_path / "one"
        options = {**OPTIONS, **CASES[case]}
        student = halve(one, method=METHOD, pipeline=double_teacher(), data=doubled(), **options)
        losses = measured(folder / case)
        assert len(losses) == 20 and losses[0] != losses[-1]
        assert losses == pytest.approx(measured(one), rel=1e-9)
        assert first["weights"][case] == second["weights"][case]
        for name, value in student.denoiser.state_dict().items():
            theirs = torch.tensor(first["weights"][case][name], dtype=torch.float64)
            assert (theirs - value).abs().max() < 1e-11, name
        assert everything(folder / case).keys() == everything(one).keys()

    def test_a_narrower_student_is_that_of_one_and_so_are_its_projectors(self, both, tmp_path):
        (first, second), folder = both
        student = narrower(tmp_path / "one")
        assert measured(folder / "narrower") == pytest.approx(measured(tmp_path / "one"), rel=1e-9)
        assert first["narrower"] == second["narrower"]
        for name, value in student.denoiser.state_dict().items():
            theirs = torch.tensor(first["narrower"][name], dtype=torch.float64)
            assert (theirs - value).abs().max() < 1e-11, name
        last = "checkpoints/00-00000020"
        states = [storage.load(at / last)[0] for at in (folder / "narrower", tmp_path / "one")]
        of_projectors = [name for name in states[0] if "projectors" in name]
        assert len(of_projectors) > 6
        for name in of_projectors:
            assert (states[0][name] - states[1][name]).abs().max() < 1e-11, name

    def test_only_the_first_writes(self, both):
        first, second = (result["touched"] for result in both[0])
        assert second == [line for line in second if "pid-1" in line]
        assert any("metrics.jsonl" in line for line in first) and len(first) > 100

    def test_all_stop_where_one_was_asked_to_and_go_on_to_the_same_bits(self, both):
        (first, second), folder = both
        assert first["stopped"] == second["stopped"]
        update = int(re.match(r"stopped at update (\d+) of 0004-steps; run", first["stopped"])[1])
        assert 10 <= update < 20
        assert bits(folder / "stopped") == bits(folder / "whole")
        assert first["went on"] == second["went on"] == first["weights"]["whole"]

    def test_what_the_first_refuses_all_refuse(self, both):
        messages = {result["refused"] for result in both[0]}
        assert len(messages) == 1
        assert messages.pop().startswith(
            f"ConfigError: '{both[1]}/whole' was made with weight_decay = 0.0"
        )
        messages = {result["full"] for result in both[0]}
        assert (
            len(messages) == 1
            and "00-00000008.safetensors': No space left on device" in messages.pop()
        )

    def test_no_stages_student_is_kept_to_the_end(self, both):
        for result in both[0]:
            assert result["alive"] == [1, 2, 2, 2]

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
    def test_no_thread_of_the_group_outlives_it(self, both):
        """One that does aborts a process now and then, as it ends: 2 of 66 command lines did."""
        for result in both[0]:
            assert not [name for name in result["threads"] if "gloo" in name]

    def test_the_firsts_gate_counts(self, both):
        names = sorted(path.name for path in (both[1] / "gated" / "stages").iterdir())
        assert names == ["0008-steps", "0016-steps"]


class TestOneProcess:
    def test_it_is_first_and_alone(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        alone = Processes("cpu")
        assert (alone.rank, alone.world, alone.first) == (0, 1, True)
        assert alone.share(7) == slice(0, 7)
        value = torch.tensor([1.5, -2.0])
        assert torch.equal(alone.total(value), value) and torch.equal(alone.largest(value), value)
        assert alone.run_on_first(lambda: "word") == "word"
        assert alone.any_stops(True, 3, 50) and not alone.any_stops(False, 50, 50)

    def test_a_share_is_a_part(self):
        three = Processes("cpu")
        three.world, three.rank = 3, 1
        assert three.share(12) == slice(4, 8)
        with pytest.raises(
            ConfigError, match=r"a batch of 14 cannot .* 3 processes: .* --batch-size 12"
        ):
            three.share(14)
        with pytest.raises(ConfigError, match="for example --batch-size 3"):
            three.share(2)

    def test_accelerate_is_imported_in_one_place(self):
        package = Path(halfstep.__file__).parent
        importing = [
            path.name
            for path in package.rglob("*.py")
            if re.search(r"^\s*(import|from) accelerate", path.read_text(), re.M)
        ]
        assert importing == ["distributed.py"]

    @pytest.mark.parametrize("name", ["cuda:99", "nonsense", "mps:3"])
    def test_a_device_that_cannot_be(self, name):
        with pytest.raises(
            ConfigError, match=f"device '{name}' cannot be used here .*: write auto"
        ):
            pick_device(name)
