"""Progress in the terminal: bars, lines, spans of time and losses."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.table import Table
from torch import nn

from halfstep.cli.console.progress import Bars, counting, figure, say, span, terminal, too_long
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import DataError
from halfstep.methods import DenoiserOnly, Progressive
from halfstep.methods.stages import cost_after, Objective, Stage
from tests.support.denoisers import wobbly_teacher

# What the terminal shows.


def shown(width, terminal=True):
    """A console that writes into a string."""
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False)


def played(console, updates, *, first=0, every=50, name="0008-steps", **more):
    """A stage of so many updates, reported every few of them."""
    stage = Stage(name, nn.Identity(), Objective(), updates)
    with Bars(console, **more) as bars:
        bars.begin(stage, first)
        for update in range(first + 1, updates + 1):
            bars.step(update, 3e-4)
            if update % every == 0 or update == updates:
                bars.measure(0.0123)
        bars.end(stage)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize(
    "updates, first, every",
    [(1, 0, 50), (19, 0, 1), (20, 0, 1), (21, 0, 1), (999, 0, 50), (20_000, 0, 50), (999, 500, 7)],
)
def test_where_nobody_looks_there_are_at_most_20_lines_a_stage(updates, first, every, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)  # a machine that is busy takes its time
    text = played(shown(80, False), updates, first=first, every=every)
    lines = text.splitlines()
    assert 1 <= len(lines) <= 21
    assert f"{updates:,}/{updates:,}  loss 0.0123  lr 3.0e-04" in lines[-1]
    assert "in 0 s" in lines[-1] and lines[0].startswith("0008-steps")
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("width", [80, 92, 100, 112, 130])
def test_a_bar_fits_on_its_line(width):
    text = played(shown(width), 3, every=1, cost_after=lambda stage: 10**9)
    for line in re.split(r"[\r\n]+", text):
        assert len(line.rstrip()) <= width
    last = text.rstrip().splitlines()[-1]
    assert "0008-steps ━" in last and "3/3" in last and "loss 0.0123" in last and "in 0 s" in last
    assert ("/s" in last) == (width >= 92)


@pytest.mark.parametrize("width", [80, 112])
def test_a_bar_of_large_numbers_fits_too(width, monkeypatch):
    """Hours left, and in all where there is room, in a hundred thousand updates."""
    console = shown(width)
    stage = Stage("0128-steps", nn.Identity(), Objective(), 100_000)  # 3 forwards a sample
    with Bars(console, cost_after=lambda stage: 900_000) as bars:
        bars.begin(stage, 0)
        bars._time.begin(0.0)
        for update in range(1, 4):
            bars._time.add(3, update)  # a second each
        bars._since, bars._warned = 4.0 - 50_000, True
        monkeypatch.setattr(time, "monotonic", lambda: 4.0)
        bars.step(50_000, 3e-4)
        bars.measure(1.2e-7)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    last = re.split(r"[\r\n]+", text.rstrip())[-1].rstrip()
    assert len(last) <= width
    assert "50,000/100,000 loss 1.2e-07  lr 3.0e-04" in last and "13 h 53 min left" in last
    assert ("97 h 13 min in all" in last) == (width >= 112)


def test_the_first_loss_is_shown_at_once():
    console = shown(80, False)
    stage = Stage("teacher", nn.Identity(), Objective(), 1000)
    with Bars(console) as bars:
        bars.begin(stage, 300)
        bars.step(301, 3e-4)
        bars.measure(0.5)
        bars.step(302, 3e-4)
        bars.measure(0.4)
    [line] = console.file.getvalue().splitlines()
    assert line.startswith("teacher     301/1,000  loss 0.5000")


def test_a_run_of_more_than_a_day_says_so_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def noted(updates, ahead):
        console = shown(80, False)
        with Bars(console, cost_after=lambda stage: ahead) as bars:
            bars.begin(Stage("teacher", nn.Identity(), Objective(), updates), 0)
            for update in range(1, 9):
                clock[0] += 2.0
                bars.step(update, 3e-4)
        return [line for line in console.file.getvalue().splitlines() if line.startswith("note")]

    [note] = noted(86_400, 0)
    assert note.endswith(
        "training takes about 2.0 days at this speed: --updates 43200 would take one day"
    )
    [note] = noted(43_200, 3 * 129_600)
    assert note.endswith("about 4.0 days at this speed: 25.0% of its --updates would take one day")
    assert noted(43_199, 0) == []


def test_what_a_day_holds():
    assert too_long(86_400.0) is None
    assert "--updates 500 would" in too_long(172_800.0, 1000)
    assert "--updates 1 would" in too_long(8.64e9, 10)


def test_the_terminal_is_given_back_after_a_failure():
    console = shown(80)
    with pytest.raises(RuntimeError), Bars(console) as bars:
        bars.begin(Stage("teacher", nn.Identity(), Objective(), 10), 0)
        raise RuntimeError
    assert console.file.getvalue().rindex("\x1b[?25h") > console.file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    "updates, after",
    [((1, 10, 100), {4: 110, 2: 100, 1: 0}), ((3,), {4: 12, 2: 6, 1: 0})],  # the last two doubled
)
def test_the_cost_ahead_is_the_sum_of_later_halvings(updates, after):
    method = Progressive(start=8, stop=1, updates=updates)
    assert method.summary() == "8 -> 4 -> 2 -> 1 steps"
    plan = method.plan(DenoiserOnly(wobbly_teacher(Cosine(), V())))
    for steps, count in after.items():
        assert cost_after(plan, f"{steps:04d}-steps", 6) == 5 * count  # forwards
    assert sum(stage.updates for stage in plan) == method.updates_for(0, 4) + after[4]


def test_opened_is_called_once_before_the_first_update():
    called = []
    bars = Bars(shown(80, False), opened=lambda: called.append(1))
    for name in ("a", "b"):
        stage = Stage(name, nn.Identity(), Objective(), 1)
        assert bool(called) == (name == "b")
        bars.begin(stage, 0)
        bars.end(stage)
    assert called == [1]


def test_what_is_said_is_printed_as_it_is():
    console = shown(20, False)
    say(console, "at", "runs/[bold]x[/bold]/a long folder name")
    assert console.file.getvalue() == "at        runs/[bold]x[/bold]/a long folder name\n"


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (75, "1 min 15 s"), (3599.6, "1 h 00 min"),
     (3725, "1 h 02 min"), (360_000, "100 h 00 min")],
)  # fmt: skip
def test_spans(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    "loss, text",
    [
        (None, "------"),
        (0.01234, "0.0123"),
        (12.5, "12.5000"),
        (9.3e-5, "9.3e-05"),
        (float("nan"), "nan"),
    ],
)
def test_losses(loss, text):
    assert figure(loss) == text


@pytest.mark.parametrize("terminal", [True, False])
def test_counting_counts(terminal):
    console = shown(80, terminal)
    with counting(console, "16 samples in 4 steps") as progress:
        for _ in range(2):
            progress.expect(2)  # the total grows
            progress.advance(2)
        progress.note("a sentence")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "16 samples in 4 steps" in text
    assert ("4/4 in 0 s" in text) == terminal
    assert re.search(r"note +a sentence\n", text)


def test_few_steps_are_not_drawn():
    for steps in (5, 6):
        console = shown(80, True)
        with counting(console, "reading", few=5) as progress:
            for _ in range(steps):
                progress.expect(1)
                progress.advance()
        assert ("6/6" in console.file.getvalue()) == (steps == 6)


def test_few_slow_steps_are_drawn(monkeypatch):
    console = shown(80, True)
    with counting(console, "reading", few=5) as progress:
        progress.expect(2)
        progress.advance()
        assert console.file.getvalue() == ""
        monkeypatch.setattr("halfstep.cli.console.progress.SOON", 0.0)
        progress.advance()
    assert "2/2" in console.file.getvalue()


def test_names_are_text_in_the_terminal(capsys):
    """Neither rich's marks nor what a terminal obeys."""
    console = terminal()
    table = Table("a [bold]name[/bold]")
    table.add_row("[/red] :smile:")
    console.print(table)
    say(console, "a", "[link=x]:smile:[/link]")
    out = capsys.readouterr().out
    for text in ("a [bold]name[/bold]", "[/red] :smile:", "[link=x]:smile:[/link]"):
        assert text in out
    say(console, "a", "b\x1b[2J\nc")
    assert capsys.readouterr().out.endswith("b\\x1b[2J\\nc\n")
    assert str(DataError("no 'a\nb\x1b[2J\udcff'")) == r"no 'a\nb\x1b[2J\udcff'"
