"""Kept walks on the disk: read by number, resumed to the bit, checksummed, and of one key alone."""

import os
import shutil

import pytest
import torch

from halfstep.data.walks import store, writing
from halfstep.data.walks.store import open_walks
from halfstep.data.walks.writing import write_walks
from halfstep.errors import CheckpointError, ConfigError
from tests.support.progress import Ledger
from tests.support.runs import rewritten
from tests.support.walks import Counting


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Ten walks in a file, walked four at a time."""
    monkeypatch.setattr(store, "SHARD", 10)
    monkeypatch.setattr(writing, "SHARD", 10)


def made(folder, count=25, walker=None, batch=4, **more):
    walker = walker or Counting(**more)
    write_walks(walker, folder, count, batch=batch)
    return walker


def contents(folder):
    """The bytes of all files but the lock and what was verified when."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in (".lock", "verified.json")
    }


@pytest.mark.parametrize("more", [{}, {"conditioned": False}, {"scaled": True}], ids=str)
def test_walks_are_read_by_number(tmp_path, more):
    made(tmp_path / "w", **more)
    walks = open_walks(tmp_path / "w")
    assert len(walks) == 25
    assert walks.times == (1.0, 0.5, 0.0)
    i, k = torch.tensor([24, 0, 9, 10, 3]), torch.tensor([2, 0, 1, 2, 0])
    states = walks.at(i, k)
    assert states.shape == (5, 2)
    assert states.dtype == torch.float32
    # Walked in fours: of the file that begins at 20 walk 24 is in the second four.
    together = 2.0**-10 * torch.tensor([4, 4, 2, 4, 4])
    assert torch.equal(states[:, 0], i + k / 8 + together)
    assert torch.equal(states[:, 1], i + k / 8 + together + 0.5)
    cond = walks.cond(i)
    if more.get("conditioned") is False:
        assert cond is None
        return
    assert torch.equal(cond.label, i % 10)
    assert torch.equal(cond.encoder_hidden_states[:, 0, 0], i.float())
    whole = walks.in_memory("cpu")
    assert len(whole.states.parts) == 1
    assert torch.equal(whole.at(i, k), states)
    assert torch.equal(whole.cond(i).label, cond.label)
    scale = 1 + (i % 3).double() / 7
    assert cond.guidance_scale is None if not more else torch.equal(cond.guidance_scale, scale)


def test_times_have_their_places(tmp_path):
    made(tmp_path / "w")
    walks = open_walks(tmp_path / "w")
    assert walks.places((1.0, 0.5, 0.0)).tolist() == [0, 1, 2]
    assert walks.places((0.5, 0.0)).tolist() == [1, 2]
    with pytest.raises(ConfigError, match=r"no points at t = 0.25, but at 1, 0.5, 0"):
        walks.places((1.0, 0.25, 0.0))


def test_the_end_of_a_walk_is_data_wherever_its_grid_ends(tmp_path):
    made(tmp_path / "w", times=[1.0, 0.5, 0.001], points=[0, 2])
    assert open_walks(tmp_path / "w").times == (1.0, 0.0)


def test_more_walks_leave_the_first_as_they_are(tmp_path):
    made(tmp_path / "w", 13)
    first = open_walks(tmp_path / "w")
    before = first.at(torch.arange(13), torch.full((13,), 2)).clone()
    walker = made(tmp_path / "w", 33)
    assert [(r.start, r.stop) for r in walker.walked] == [
        (10, 14), (14, 18), (18, 20), (20, 24), (24, 28), (28, 30), (30, 34)
    ]  # fmt: skip
    walks = open_walks(tmp_path / "w")
    assert len(walks) == 33
    assert torch.equal(walks.at(torch.arange(13), torch.full((13,), 2)), before)
    made(tmp_path / "once", 33)
    assert contents(tmp_path / "w") == contents(tmp_path / "once")
    # Fewer are there already.
    assert made(tmp_path / "w", 5).walked == []
    assert len(open_walks(tmp_path / "w")) == 33


@pytest.mark.parametrize("at", range(8))
def test_killed_in_the_middle_it_goes_on_to_the_same_bits(tmp_path, at):
    class Killed(Exception):
        pass

    class Dying(Counting):
        def walk(self, numbers, cond):
            if len(self.walked) == at:
                raise Killed
            return super().walk(numbers, cond)

    made(tmp_path / "whole")
    with pytest.raises(Killed):
        made(tmp_path / "w", walker=Dying())
    walker = made(tmp_path / "w")
    assert len(walker.walked) <= 8
    assert contents(tmp_path / "w") == contents(tmp_path / "whole")
    assert made(tmp_path / "w").walked == []


def test_walks_go_on_in_the_batches_that_they_began_with(tmp_path):
    """Or in smaller ones, where memory does not allow these."""
    made(tmp_path / "w", 13, batch=2)
    walker = made(tmp_path / "w", batch=4)
    assert {len(numbers) for numbers in walker.walked} == {2}
    assert contents(tmp_path / "w") == contents_of_once(tmp_path, batch=2)
    walker = made(tmp_path / "w", 40, batch=1)
    assert {len(numbers) for numbers in walker.walked} == {1}


def contents_of_once(tmp_path, **more):
    made(tmp_path / "once", **more)
    return contents(tmp_path / "once")


def test_a_file_that_is_gone_is_made_again(tmp_path):
    made(tmp_path / "w")
    before = contents(tmp_path / "w")
    for name in ("points-00001-10.npy", "condition-00000-10.npy"):
        (tmp_path / "w" / name).unlink()
        with pytest.raises(
            CheckpointError, match=f"{name}' is missing: run the same command again"
        ):
            open_walks(tmp_path / "w")
        made(tmp_path / "w")
        assert contents(tmp_path / "w") == before


@pytest.mark.parametrize(
    "name", ["points-00001-10.npy", "condition-00002-5.npy", "scale-00000-10.npy"]
)
def test_a_flipped_byte_is_refused(tmp_path, name):
    made(tmp_path / "w", scaled=True)
    open_walks(tmp_path / "w")
    path = tmp_path / "w" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        CheckpointError, match=f"{name}' is damaged: its checksum .* walks.json; delete"
    ):
        open_walks(tmp_path / "w")
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"{name}' is damaged"):
        open_walks(tmp_path / "w", verify=False)


OTHER = {
    "teacher": ("b" * 64, "another teacher"),
    "network": ("d", "schedule or parameterisation"),
    "solver": ("heun", "another solver (ddim, now heun)"),
    "times": ([1.0, 0.25, 0.0], "another time grid or number of steps"),
    "points": ([0, 2], "choice of points"),
    "seed": (1, "another seed (0, now 1)"),
    "conditions": ("e", "labels or texts"),
    "guidance_scale": (2.0, "guidance scale (1.0, now 2.0)"),
    "guidance_range": ([1.0, 2.0], "range of guidance scales"),
    "guidance_norm": (2, "norm of guidance"),
    "clip": (1.0, "another clip (None, now 1.0)"),
    "clipping": ("x0", "clipping"),
    "shape": ([3], "shape of samples"),
    "precision": ("bf16", "another precision (fp32, now bf16)"),
    "dtype": ("float16", "precision of the files"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_key_is_refused_by_name(tmp_path, name):
    value, words = OTHER[name]
    made(tmp_path / "w")
    before = contents(tmp_path / "w")
    other = Counting(**{name: value})
    for count in (5, 25, 26):
        with pytest.raises(ConfigError) as error:
            made(tmp_path / "w", count, walker=other)
        assert words in str(error.value)
        assert "choose another folder, or delete that one" in str(error.value)
    with pytest.raises(ConfigError):
        open_walks(tmp_path / "w", key=other.key)
    open_walks(tmp_path / "w", key=Counting().key)
    assert contents(tmp_path / "w") == before
    assert OTHER.keys() == Counting().key.keys()


def test_half_precision_halves_the_files(tmp_path):
    made(tmp_path / "w", conditioned=False)
    made(tmp_path / "h", conditioned=False, dtype="float16")
    sizes = [
        sum(
            (tmp_path / f / p).stat().st_size - 128 for p in contents(tmp_path / f) if "points" in p
        )
        for f in "wh"
    ]
    assert sizes == [25 * 3 * 2 * 4, 25 * 3 * 2 * 2]
    walks = open_walks(tmp_path / "h")
    assert walks.at(torch.tensor([3]), torch.tensor([1])).dtype == torch.float32

    class Large(Counting):
        def walk(self, numbers, cond):
            return 1e6 * super().walk(numbers, cond)

    with pytest.raises(ConfigError, match="nan or too large for float16: leave half out"):
        made(tmp_path / "large", walker=Large(dtype="float16"))
    made(tmp_path / "float32", walker=Large())


def test_progress_counts_walks_and_those_that_were_there_at_once(tmp_path):
    made(tmp_path / "w", 13)
    ledger = Ledger()
    write_walks(Counting(), tmp_path / "w", 33, batch=4, progress=ledger)
    assert ledger.steps == 33


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"something other than walks \(it has 'thesis.tex'\)"):
        made(tmp_path / "w")
    assert os.listdir(tmp_path / "w") == ["thesis.tex"]
    with pytest.raises(ConfigError, match="holds no walks"):
        open_walks(tmp_path / "w")


def test_a_disk_without_room_is_refused_before_the_first_walk(tmp_path, monkeypatch):
    walker = Counting()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ConfigError, match=r"25 walks take .* GB, and the disk .* keep fewer"):
        made(tmp_path / "w", walker=walker)
    assert walker.walked == []


@pytest.mark.parametrize(("count", "batch"), [(0, 4), (4, 0)])
def test_numbers_that_cannot_be(tmp_path, count, batch):
    with pytest.raises(ConfigError, match="one noise or more"):
        write_walks(Counting(), tmp_path / "w", count, batch=batch)


def test_a_file_outside_of_the_folder_is_refused(tmp_path):
    made(tmp_path / "w")
    rewritten(
        tmp_path / "w" / "walks.json",
        lambda about: about["shards"][0]["files"][0].update(file="../points.npy"),
    )
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_walks(tmp_path / "w")


def test_a_complete_folder_needs_no_writing(tmp_path):
    made(tmp_path / "w")
    (tmp_path / "w" / ".lock").unlink()
    made(tmp_path / "w")
    assert not (tmp_path / "w" / ".lock").exists()
