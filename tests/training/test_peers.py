"""What processes of one run tell one another, threads standing in for them: what they bring, why they end."""

import dataclasses
import threading
from functools import partial

import pytest
import torch
from torch.distributed import HashStore

from halfstep.data import Dataset
from halfstep.errors import ConfigError, DataError, HalfstepError, Stopped
from halfstep.methods import Progressive
from halfstep.training import distributed, peers
from halfstep.training.distributed import Processes
from halfstep.training.peers import Board, launched, refuse_different, versions
from tests.support.processes import ComparedError, gate
from tests.support.runs import halve, job, points, teacher


def boards(world=2):
    store = HashStore()
    return [Board(store, rank, world, exit_seconds=0.2) for rank in range(world)]


def at_once(*acts):
    """What each act, a thread of its own, returns or raises."""
    results = [None] * len(acts)

    def run(k):
        try:
            results[k] = acts[k]()
        except Exception as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "one of them waits for ever"
    return results


class TestDifferences:
    @pytest.mark.parametrize(
        "words, names",
        [
            ([{"a": 1, "seed": 0}, {"a": 1, "seed": 5}], ["seed:", "0 in process 0", "5 in process 1"]),
            ([{"seed": 1, "a": 0}, {"a": 1, "seed": 5}], ["seed:"]),
            ([{"a": 1}, {"a": 1, "b": 2}], ["b:", "nothing in process 0", "2 in process 1"]),
            ([{"a": 1, "b": None}, {"a": 1}], ["b:", "null in process 0", "nothing in process 1"]),
            ([{"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}], ["a.b.c:"]),
            ([{"a": {}}, {"a": {"width": 8}}], ["a.width:"]),
            ([{"a": 1}, {"a": 1.0}], ["a:"]),
            ([{"a": [1, 2]}, {"a": [1, 2, 3]}], ["a:", "[1, 2] in process 0"]),
            ([{"a": 1}, {"a": 2}, {"a": 1}], ["1 in processes 0 and 2", "2 in process 1"]),
            ([{"a": "x" * 500 + "y"}, {"a": "x" * 500 + "z"}], ['xy"', 'xz"', "..."]),
            ([{"a": k} for k in range(3)], ["0 in process 0, 1 in process 1, 2 in process 2"]),
            ([{"a": k > 0} for k in range(64)], ["true in 63 processes, the first of them 1"]),
        ],
    )  # fmt: skip
    def test_the_first_is_named_with_everyones_value(self, words, names):
        with pytest.raises(ConfigError) as caught:
            refuse_different(words)
        for name in names:
            assert name in str(caught.value)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        "word",
        [{}, {"a": None}, {"a": float("nan")}, {"a": {"b": {}}, "c": [1, "x"]}, {"n": 10**400}],
    )
    def test_the_same_is_not_refused(self, word):
        refuse_different([word, dict(word), dict(word)])

    def test_versions_are_of_what_computes(self):
        names = versions()
        assert set(names) == {"halfstep", "torch", "diffusers", "numpy", "python"}
        assert names["torch"].split("+")[0] == torch.__version__.split("+")[0]


class TestLaunched:
    @pytest.mark.parametrize(
        "environment, expected",
        [
            ({}, (0, 1)),
            ({"WORLD_SIZE": "1"}, (0, 1)),
            ({"WORLD_SIZE": "3", "RANK": "2"}, (2, 3)),
        ],
    )
    def test_rank_and_world(self, monkeypatch, environment, expected):
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert launched() == expected

    @pytest.mark.parametrize(
        "world, rank", [("2", None), ("2", "2"), ("2", "-1"), ("two", "0"), ("0", "0"), ("2", "x")]
    )
    def test_what_no_launcher_says(self, monkeypatch, world, rank):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(ConfigError, match="torchrun"):
            Processes("cpu")

    @pytest.mark.parametrize("address, port", [("", "1"), ("localhost", ""), ("localhost", "x")])
    def test_no_place_to_meet(self, monkeypatch, address, port):
        monkeypatch.setenv("MASTER_ADDR", address)
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(ConfigError, match="MASTER_PORT"):
            peers._store(0)

    def test_a_port_that_is_taken(self, monkeypatch):
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
            monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
            monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
            with pytest.raises(HalfstepError, match="another RANK"):
                peers._store(0)


class TestMeeting:
    def test_all_come_again_and_again(self):
        both = boards()
        for run in range(3):
            word = {"run": run}
            assert at_once(*(partial(b.meet, word) for b in both)) == [None, None]

    def test_all_refuse_where_one_comes_with_something_else(self):
        three = boards(3)
        results = at_once(*(lambda b=b: b.meet({"torch": str(b.rank // 2)}) for b in three))
        assert {type(error) for error in results} == {ConfigError}
        assert len({str(error) for error in results}) == 1 and "torch" in str(results[0])

    def test_one_that_does_not_come_is_named(self):
        first, _, third = boards(3)
        results = at_once(*(lambda b=b: b.meet({}, patience=0.1) for b in (first, third)))
        for error in results:
            assert type(error) is HalfstepError and "process 1 of 3" in str(error)

    def test_who_refuses_before_is_heard_with_its_sentence(self):
        first, second = boards()
        results = at_once(
            lambda: first.meet({}), lambda: second.end("--learning-rate takes a number", patience=0)
        )
        assert type(results[0]) is HalfstepError
        assert "process 1" in str(results[0]) and "--learning-rate takes a number" in str(
            results[0]
        )
        assert results[1] is False

    def test_an_end_is_of_one_run(self):
        both = boards()
        at_once(*(lambda b=b: b.meet({}) for b in both))
        assert at_once(*(lambda b=b: b.end("no room") for b in both)) == [True, True]
        assert at_once(*(lambda b=b: b.meet({}) for b in both)) == [None, None]
        assert both[0].reason() == ""

    def test_only_a_cause_is_a_reason(self):
        three = boards(3)
        at_once(*(lambda b=b: b.meet({}) for b in three))
        three[2].end("another is gone", cause=False, patience=0)
        assert three[0].reason() == ""
        three[1].end("image 7 is damaged", patience=0)
        three[1].end("said once", patience=0)
        assert "process 1" in three[0].reason() and "image 7" in three[0].reason()

    def test_a_board_that_is_gone(self):
        class Gone:
            def set(self, *args):
                raise RuntimeError("Broken pipe")

            check = get = set

        board = Board(Gone(), 1, 2, exit_seconds=0.2)
        with pytest.raises(HalfstepError, match="first process"):
            board.meet({})
        assert board.end("x") is False and board.all_end() is False and board.reason() == ""


CLOSED = "[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
LATE = "[.../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"


class TestTogether:
    @pytest.fixture
    def two(self, monkeypatch):
        """This process and another one's board."""
        mine, other = boards()
        at_once(lambda: mine.meet({}), lambda: other.meet({}))
        processes, parted = Processes("cpu"), []
        processes.world, processes._board = 2, mine
        monkeypatch.setattr(distributed, "_leave_group", lambda *args: parted.append(args))
        return processes, other, parted

    def fail(self, processes, error):
        with pytest.raises(type(error)) as caught, processes.together():
            raise error
        assert caught.value is error

    @pytest.mark.parametrize(
        "error, word",
        [
            (RuntimeError(CLOSED), "gone"),
            (RuntimeError(LATE), "answers"),
            (torch.distributed.DistBackendError("NCCL error: remote process exited"), "gone"),
            (torch.distributed.DistNetworkError("Broken pipe"), "gone"),
        ],
    )
    def test_what_a_dead_process_leaves_is_a_sentence(self, two, error, word):
        processes, other, parted = two
        with pytest.raises(HalfstepError, match=word) as caught, processes.together():
            raise error
        assert other.reason() == "", "who finds others gone is no reason itself"
        assert type(caught.value) is HalfstepError and len(parted) == 1
        assert "gloo" not in str(caught.value) and "goes on" in str(caught.value)

    def test_why_it_ended_is_said(self, two):
        processes, other, _ = two
        other.end("image 7 is damaged", patience=0)
        with pytest.raises(HalfstepError, match=r"process 1 .* image 7"), processes.together():
            raise RuntimeError(CLOSED)

    @pytest.mark.parametrize(
        "error",
        [DataError("damaged"), KeyError("fault"), RuntimeError("shapes"), KeyboardInterrupt()],
    )
    def test_who_fails_alone_parts_and_says_why(self, two, error):
        processes, other, parted = two
        self.fail(processes, error)
        assert len(parted) == 1
        assert "process 0" in other.reason() and str(error) in other.reason()

    @pytest.mark.parametrize("error", [DataError("damaged"), Stopped("stopped")])
    def test_where_all_fail_alike_the_group_stays(self, two, error):
        processes, other, parted = two
        other.end("the same", patience=0)
        self.fail(processes, error)
        assert not parted

    def test_alone_nothing_is_changed(self):
        self.fail(Processes("cpu"), RuntimeError(CLOSED))

    def test_no_run_begins_after_they_parted(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr(distributed, "_failures", ["damaged"])
        with pytest.raises(HalfstepError, match="parted"):
            Processes("cpu")


@pytest.fixture
def word(monkeypatch, tmp_path):
    """What a process of a run comes with."""

    def ask(**changes):
        def keep(processes, values):
            raise ComparedError(values)

        monkeypatch.setattr(Processes, "compare", keep)
        with pytest.raises(ComparedError) as caught:
            halve(changes.pop("out", tmp_path / "run"), **changes)
        assert not list(tmp_path.iterdir()), "nothing is made before all agree"
        return caught.value.args[0]

    return ask


def other_points():
    return Dataset(points().values.clone().index_fill_(0, torch.tensor([7]), 0.5))


class TestTheWordOfARun:
    @pytest.mark.parametrize(
        "changes, named",
        [
            ({"seed": 6}, "seed"),
            ({"seed": 6, "pipeline": teacher(seed=1)}, "seed"),
            ({"batch_size": 8}, "batch"),
            ({"log_every": 5}, "log_every"),
            ({"save_every": 4}, "save_every"),
            ({"micro_batch_size": 2}, "micro_batch_size"),
            ({"precision": "bf16"}, "precision"),
            ({"learning_rate": 2e-3}, "learning_rate"),
            ({"max_grad_norm": 0.5}, "max_grad_norm"),
            ({"method": Progressive(start=8, stop=2, updates=(8,))}, "updates"),
            ({"method": Progressive(start=8, stop=4, updates=(7,))}, "stop"),
            ({"data": other_points()}, "data"),
            ({"pipeline": teacher(seed=1)}, "teacher"),
            ({"pipeline": dataclasses.replace(teacher(), clip=1.0)}, "pipeline.clip"),
            ({"out": "elsewhere"}, "out"),
            ({"job": job(extend=True)}, "extend"),
            ({"job": job(from_previous=True)}, "from_previous"),
            ({"job": job(device="auto")}, "device"),
            ({"job": job(gate=gate())}, "gate"),
            ({"job": job(shared={"validate": "0.2"})}, "validate"),
        ],
    )
    def test_another_is_refused_and_named(self, word, changes, named):
        with pytest.raises(ConfigError, match=rf"differ in {named}[.\w]*:"):
            refuse_different([word(), word(**changes)])

    @pytest.mark.parametrize(
        "options", [{"tolerance": 1.2}, {"until": 2}, {"samples": 100}, {"about": {"seed": 1}}]
    )
    def test_another_gate_is_refused(self, word, options):
        one, other = gate(), gate(**options)
        with pytest.raises(ConfigError, match="differ in gate"):
            refuse_different([word(job=job(gate=one)), word(job=job(gate=other))])

    def test_the_same_is_not(self, word, tmp_path):
        options = {"job": job(gate=gate(writes=False))}
        same = [word(job=job(gate=gate())), word(out=tmp_path / "x" / ".." / "run", **options)]
        refuse_different(same)

    def test_a_gate_says_what_it_measures_with(self, word):
        gates = [gate(about={"digest": k}) for k in range(2)]
        with pytest.raises(ConfigError, match=r"differ in gate.about.digest:"):
            refuse_different([word(job=job(gate=one)) for one in gates])
