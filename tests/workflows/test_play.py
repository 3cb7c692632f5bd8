"""The screen to play with: pictures of the networks, with their costs; moved sliders change them."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.extras import installed
from halfstep.pictures import to_uint8
from halfstep.workflows import play
from halfstep.workflows.play import draw, Drawn, load_networks, on_screen, PlayConfig
from tests.support.docs import blocks, ROOT
from tests.support.webdriver import browser, needs_chromedriver


@pytest.fixture(scope="module")
def networks():
    return load_networks(PlayConfig())


def test_the_bundled_digits_are_what_one_plays_with_first(networks):
    assert (networks.name, list(networks.students), networks.full) == ("digits", [8, 4, 2, 1], 64)
    assert networks.class_names == tuple("0123456789") and networks.guidance == (1.0, 3.0)
    assert not networks.reads_texts


def test_pictures_are_those_of_the_networks(networks):
    choices = {"seed": 5, "label": 7, "steps": 4, "teacher_steps": 16, "guidance_scale": 2.0}
    teacher, student = draw(networks, **choices)
    common = {"seed": 5, "labels": [7], "guidance_scale": 2.0}
    expected = networks.teacher.sample(1, steps=16, sampler="ddim", **common)
    assert (teacher.picture == to_uint8(expected.clamp(-1, 1))[0]).all()
    expected = networks.students[4].sample(1, steps=4, **common)
    assert (student.picture == to_uint8(expected.clamp(-1, 1))[0]).all()
    # the teacher is guided by two calls a step, the student takes the scale as an input
    assert (teacher.steps, teacher.calls) == (16, 32) and (student.steps, student.calls) == (4, 4)


def test_without_guidance_a_step_is_a_call(networks):
    teacher, student = draw(networks, teacher_steps=8)
    assert (teacher.calls, student.steps, student.calls) == (8, 1, 1)


def test_every_choice_changes_the_student(networks):
    first = {"seed": 1, "label": 2, "steps": 8, "teacher_steps": 1, "guidance_scale": 1.0}
    [_, student] = draw(networks, **first)
    for name, value in {"seed": 2, "label": 3, "steps": 4, "guidance_scale": 3.0}.items():
        [_, other] = draw(networks, **first | {name: value})
        assert (other.picture != student.picture).any(), name
    [_, again] = draw(networks, **first | {"teacher_steps": 2})
    assert (again.picture == student.picture).all()


def test_the_time_is_that_of_each(networks, monkeypatch):
    clock = iter([10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr(play, "perf_counter", lambda: next(clock))
    teacher, student = draw(networks, teacher_steps=1)
    assert (teacher.seconds, student.seconds) == (2.0, 0.5)


def test_cost_in_words():
    blank = np.zeros((8, 8, 1), np.uint8)
    assert Drawn(blank, 64, 128, 1.2344).label == "64 steps, 128 network calls, 1,234 ms"
    assert Drawn(blank, 1, 1, 0.003).label == "1 step, 1 network call, 3 ms"


def test_small_pictures_are_enlarged_in_squares_and_large_ones_are_not():
    small = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    shown = on_screen(small)
    assert shown.shape == (384, 384, 3) and (shown[::48, ::48] == small).all()
    large = np.zeros((400, 512, 3), np.uint8)
    assert on_screen(large).shape == large.shape


@pytest.mark.parametrize(
    ("choice", "words"),
    [({"steps": 3}, "8, 4, 2, 1"), ({"prompt": "a cat"}, "reads no texts"), ({"seed": -1}, "seed")],
)
def test_what_cannot_be_drawn_is_refused(networks, choice, words):
    with pytest.raises(ConfigError, match=words):
        draw(networks, teacher_steps=1, **choice)


def test_a_label_without_classes_is_refused(networks):
    none = SimpleNamespace(**{**vars(networks), "class_names": (), "reads_texts": False})
    none.guidance, none.only_scale = None, 1.0
    with pytest.raises(ConfigError, match="no classes"):
        draw(none, label=1)


def test_one_scale_is_no_choice(networks):
    fixed = {8: replace(networks.students[8], guidance_range=(2.0, 2.0))}
    one = replace(networks, students=fixed)
    assert one.guidance is None and one.only_scale == 2.0
    unguided = {8: replace(networks.students[8], guidance_range=None)}
    assert replace(networks, students=unguided).guidance == (1.0, play.GUIDANCE)
    assert replace(networks, students=unguided).only_scale == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"teacher": "runs/x"}, "belong to a RUN"), ({"run": "nowhere"}, "nowhere")],
)
def test_bad_options_are_one_sentence(options, words):
    with pytest.raises(ConfigError, match=words):
        load_networks(PlayConfig(**options))


def test_points_are_refused(networks, monkeypatch):
    points = SimpleNamespace(shape=(2,), codec=None)
    monkeypatch.setattr(play, "_read", lambda config: ("points", points, [], 64))
    with pytest.raises(ConfigError, match="shows images"):
        load_networks(PlayConfig(run="points"))


# ---- the page


needs_gradio = pytest.mark.skipif(not installed("gradio"), reason="no gradio here")


SPACE = """
import gradio, json, sys
launched = []
gradio.Blocks.launch = lambda app, **options: launched.append(app)
exec(compile(sys.argv[1], "app.py", "exec"), {"__name__": "__main__"})
[app] = launched
labels = [getattr(block, "label", None) for block in app.blocks.values()]
print(json.dumps([labels, app.analytics_enabled]))
"""


@needs_gradio
def test_the_space_in_the_docs_runs_as_it_is():
    """In a process of its own: Gradio leaves an event loop behind."""
    [text] = blocks(ROOT / "docs" / "how-to" / "play.md", "py")
    done = subprocess.run(
        [sys.executable, "-c", SPACE, text], capture_output=True, text=True, timeout=300, check=True
    )
    labels, analytics = json.loads(done.stdout.splitlines()[-1])
    for label in ("teacher", "student", "seed", "class", "steps of the student", "guidance scale"):
        assert label in labels
    assert analytics is False


CHANGE = """const box = document.querySelector(`#${arguments[0]} input[type=number]`);
    box.value = 3; box.dispatchEvent(new Event("input", {bubbles: true}));
    box.dispatchEvent(new Event("change", {bubbles: true})); box.blur()"""
PICTURE = "const i = document.querySelector('#%s-picture img'); return i && i.naturalWidth && i.src"


@pytest.mark.slow
@needs_gradio
@needs_chromedriver
def test_moved_sliders_change_the_pictures():
    command = [sys.executable, "-m", "halfstep", "play", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(m[1] for line in server.stdout if (m := re.search(r"page +(http\S+)", line)))
        assert url.startswith("http://127.0.0.1:")
        with browser() as driver:
            driver.open(url)
            shown = {name: driver.wait(PICTURE % name) for name in ("teacher", "student")}
            cost = driver.run("return document.querySelector('#student-cost textarea').value")
            assert cost.startswith("1 step, 1 network call, ") and cost.endswith(" ms")
            for slider in ("seed", "guidance"):
                driver.run(CHANGE, slider)
                for name, old in shown.items():
                    now = f"const now = (() => {{ {PICTURE % name} }})(); "
                    shown[name] = driver.wait(f"{now} return now != arguments[0] && now", old)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
        server.stdout.close()


def test_a_run_of_students_is_read_from_its_folder(tmp_path, networks):
    """A run whose teacher no option names has the bundled one, told by its weights."""
    import halfstep
    from halfstep.hub.bundled import bundled_teacher
    from halfstep.methods import Progressive

    teacher = bundled_teacher()
    method = Progressive(start=2, stop=1, updates=(1,))
    training = halfstep.TrainingConfig(batch_size=8, ema=0.0)
    halfstep.distill(
        teacher, halfstep.data.load("digits"), tmp_path / "run", method=method, training=training
    )
    loaded = load_networks(PlayConfig(run=str(tmp_path / "run")))
    assert loaded.name == "run" and set(loaded.students) <= {2, 1} and loaded.students
    assert loaded.guidance == (1.0, play.GUIDANCE)
    drawn = draw(loaded, teacher_steps=1)
    assert all(torch.tensor(one.picture).shape == (8, 8, 1) for one in drawn)
