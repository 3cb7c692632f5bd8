"""Every JSON and TOML that halfstep reads, damaged in every way: one sentence, or what the whole one gives.

Never a traceback and never silence: where a damaged file is read without an error, what comes of it is what
comes of the undamaged one.
"""

import copy
import io
import json
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep import storage
from halfstep.cli import main
from halfstep.config.toml import from_file
from halfstep.data.latents.captions import read_captions
from halfstep.data.latents.dataset import open_latents
from halfstep.data.sources import cifar10
from halfstep.errors import HalfstepError
from halfstep.models.autoencoder.kl import KLCodec, load_codec
from halfstep.models.classifiers.checkpoint import load_classifier
from halfstep.models.text_encoders import load_texts
from halfstep.schema import add_checksum, CHECKSUM
from halfstep.training.run_config import read_config
from halfstep.training.run_folder import RunFolder
from halfstep.workflows.locate import locate_pipeline
from halfstep.workflows.noise_file import NoiseFile
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.support.evidence import encoder_report, full_report
from tests.support.runs import At, Crash, crash, halve, job
from tests.support.texts import clip, whole_clip

pytestmark = pytest.mark.slow

QUICK = ["--updates", "1", "--batch-size", "8", "--device", "cpu"]
FEW = [
    "--samples",
    "8",
    "--full",
    "2",
    "--split-samples",
    "0",
    "--cost-rounds",
    "0",
    "--shown",
    "1",
    "--device",
    "cpu",
]


def run(*words):
    """A command that must succeed."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = main([str(word) for word in words])
    assert status == 0, output.getvalue()


def numbers(pipeline):
    return [] if pipeline is None else pipeline.sample(2, seed=0).tolist()


def gone_on(folder):
    """The weights of a run that was interrupted, and goes on."""
    with redirect_stdout(io.StringIO()):
        return numbers(halve(folder))


def weights_of(module):
    return [value.tolist() for value in module.state_dict().values()]


def evaluated(folder):
    """That a run is evaluated without an error; its numbers are those of other tests."""
    run("evaluate", folder, *FEW)
    return [row["distances"] for row in json.loads((folder / "report.json").read_text())["rows"]]


def rendered(folder):
    """The page of what was measured."""
    run("report", folder)
    return (folder / "report.html").read_text()


def latents_of(at):
    return open_latents(at / "lat").batch(torch.arange(9)).x0.tolist()


def noise_of(at):
    file = NoiseFile.load(at / "noise.safetensors")
    return file.noise.tolist(), dict(file.about)


def answered(at):
    words = ["--teacher", at / "c", "--data", "digits", "--cache", at / "kept", *QUICK]
    run("distill", "knowledge", *words, "--out", at / "k")


def vae_of(at):
    codec = load_codec(at / "vae")
    return codec.scale, weights_of(codec.model)


def captions_of(at):
    return read_captions(at / "images", [at / "images/a.png", at / "images/b.png"])


STUDENT = "s/stages/0001-steps"
READS = {
    "pipeline.json": (
        "t/stages/teacher/pipeline.json",
        lambda at: numbers(locate_pipeline(at / "t")),
    ),
    "run.json": ("r/run.json", lambda at: gone_on(at / "r")),
    "run.json, evaluated": ("s/run.json", lambda at: evaluated(at / "s")),
    "stage.json": ("r/stages/0004-steps/stage.json", lambda at: gone_on(at / "r")),
    "stage.json, found": (f"{STUDENT}/stage.json", lambda at: numbers(locate_pipeline(at / "s"))),
    "a checkpoint": ("r/checkpoints/01-00000006.json", lambda at: gone_on(at / "r")),
    "metrics.jsonl": ("s/metrics.jsonl", lambda at: RunFolder(at / "s").metrics),
    "config.toml": ("s/config.toml", lambda at: read_config(at / "s")),
    "config.toml, evaluated": ("s/config.toml", lambda at: evaluated(at / "s")),
    "gate.json": ("s/gate.json", lambda at: numbers(locate_pipeline(at / "s"))),
    "report.json": ("s/report.json", lambda at: rendered(at / "s")),
    "report.json, guided": ("g/report.json", lambda at: rendered(at / "g")),
    "report.json, encoders": ("e/report.json", lambda at: rendered(at / "e")),
    "compressed.json": (
        "s/compressed/0001-steps-weights-50/compressed.json",
        lambda at: evaluated(at / "s"),
    ),
    "codec.json": ("codec/codec.json", lambda at: weights_of(load_codec(at / "codec").model)),
    "latents.json": ("lat/latents.json", latents_of),
    "verified.json": ("lat/verified.json", latents_of),
    "classifier.json": (
        "c/stages/classifier/classifier.json",
        lambda at: weights_of(load_classifier(at / "c")),
    ),
    "noise.json": ("noise.json", noise_of),
    "answers": ("kept/view-0000.json", answered),
    "config of diffusers": ("vae/config.json", vae_of),
    "config of a text encoder": ("clip/config.json", lambda at: states_of(at / "clip")),
    "config of a whole CLIP": ("whole/config.json", lambda at: states_of(at / "whole")),
    "metadata.jsonl": ("images/metadata.jsonl", captions_of),
    "labels of cifar": (
        "cifar/test_lables.json",
        lambda at: cifar10.load(at / "cifar", "test").labels.tolist(),
    ),
    "a preset": ("own.toml", lambda at: from_file(TrainDenoiserConfig, at / "own.toml")),
}
"""A file, and how whoever reads it does so; what that gives can be compared."""


def states_of(folder):
    return load_texts(folder, tokens=8).conditions(["a cat"]).encoder_hidden_states.tolist()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One folder with a file of every kind."""
    at = tmp_path_factory.mktemp("world")
    run("train", "denoiser", "--data", "digits", "--net", "uvit", "--net-config", "patch_size", 4,
        "embed_dim", 16, "depth", 2, "num_heads", 2, *QUICK, "--out", at / "t")  # fmt: skip
    run("distill", "progressive", "--teacher", at / "t", "--data", "digits", "--start", 2, "--stop", 1,
        "--tolerance", 1e6, "--samples", 16, *QUICK, "--out", at / "s")  # fmt: skip
    run("compress", at / "s", "--prune", 0.5, "--no-evaluate")
    run("evaluate", at / "s", *FEW)
    with pytest.raises(Crash):
        halve(at / "r", job=job(callback=At("0002-steps", 7, crash)))
    torch.manual_seed(0)
    codec = KLCodec.fresh(
        {"in_channels": 1, "out_channels": 1, "block_out_channels": [4, 4], "norm_num_groups": 2}
    )
    codec.save(at / "codec")
    codec.model.save_pretrained(at / "vae")
    run("latents", "--data", "digits", "--codec", at / "codec", "--out", at / "lat")
    open_latents(at / "lat")
    run("train", "classifier", "--data", "digits", *QUICK, "--out", at / "c")
    run(
        "encode",
        at / "t",
        "--images",
        "digits",
        "--n",
        2,
        "--steps",
        1,
        "--out",
        at / "noise.safetensors",
    )
    run("distill", "knowledge", "--teacher", at / "c", "--data", "digits", "--cache", at / "kept", *QUICK,
        "--out", at / "k")  # fmt: skip
    shutil.rmtree(at / "k")
    for name, report in (("g", full_report()), ("e", encoder_report())):
        (at / name).mkdir()
        storage.write_json(at / name / "report.json", report)
    clip(at / "clip", positions=77)
    whole_clip(at / "whole")
    (at / "images").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(at / "images" / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "text": ["one", "two"]} for name in "ab"]
    (at / "images/metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (at / "cifar").mkdir()
    Image.fromarray(np.zeros((3, 1024, 3), np.uint8)).save(at / "cifar/test_batch.png")
    (at / "cifar/test_lables.json").write_text("[1, 2, 3]")
    (at / "own.toml").write_text(
        'data = "digits"\nbatch_size = 4\nbetas = [0.9, 0.99]\nlabels = true\n'
    )
    return at


DEEP = "[" * 50_000
HUGE = ("9" * 30, "9" * 5000, "1e999")


def paths_in(value, at=()):
    """Where the values of a JSON are; of a list the first alone."""
    yield at
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths_in(each, (*at, key))
    elif isinstance(value, list) and value:
        yield from paths_in(value[0], (*at, 0))


def with_value(content, path, text):
    """The JSON with this text in the place of a value; None takes it out."""
    if not path:
        return text if text is not None else ""
    changed = copy.deepcopy(content)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if text is None:
        del holder[path[-1]]
        return json.dumps(changed)
    holder[path[-1]] = "HERE"
    return json.dumps(changed).replace('"HERE"', text, 1)


WRONG = (
    "null",
    '"x"',
    "-1",
    "1.5",
    "[]",
    "{}",
    "[[1]]",
    '{"a": 1}',
    "true",
    "NaN",
    "-Infinity",
    *HUGE,
    DEEP,
)


def damaged(text, *, ours):
    """(what was done, the damaged bytes) of a JSON text."""
    content = json.loads(text)
    whole = text.encode()
    for cut in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
        yield f"cut at {cut}", whole[:cut]
    yield "no UTF-8", whole[: len(whole) // 2] + b"\xff\xfe" + whole[len(whole) // 2 :]
    yield "zeros", bytes(len(whole))
    for path in paths_in(content):
        if path == (CHECKSUM,):
            continue
        for text in (None, *WRONG):
            name = f"{'.'.join(map(str, path))} = {'gone' if text is None else text[:20]}"
            made = with_value(content, path, text)
            yield name, made.encode()
            if ours and (again := resealed(made)) is not None:
                yield f"{name}, sealed", again


def resealed(text):
    """By whoever knows its checksum; None where that cannot be."""
    try:
        content = json.loads(text)
        content.pop(CHECKSUM, None)
        return json.dumps(add_checksum(content)).encode()
    except Exception:
        return None


def damaged_lines(text):
    """Of a file of a JSON a line: one of them."""
    first, _, rest = text.partition("\n")
    for name, made in damaged(first, ours=False):
        if not name.startswith("cut at 0"):
            yield name, made + b"\n" + rest.encode()


def damaged_toml(text):
    whole = text.encode()
    for cut in {1, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
        yield f"cut at {cut}", whole[:cut]
    yield "no UTF-8", whole + b"\xff"
    for k, line in enumerate(lines := text.splitlines()):
        name, equals, _ = line.partition(" = ")
        for value in (
            ("nan", "-inf", '"x"', "-1", "[]", "{}", "[[1]]", *HUGE, DEEP) if equals else ()
        ):
            changed = [*lines[:k], f"{name} = {value}", *lines[k + 1 :]]
            yield f"{name} = {value[:20]}", "\n".join(changed).encode()


SAME = {"a preset", "config of diffusers", "config of a text encoder", "config of a whole CLIP",
        "metadata.jsonl", "labels of cifar", "metrics.jsonl"}  # fmt: skip
"""Of others, or without a checksum: another value that is right is another value."""


MOST = {
    "run.json": 60,
    "stage.json": 60,
    "stage.json, found": 100,
    "a checkpoint": 60,
    "pipeline.json": 300,
    "gate.json": 100,
    "report.json": 300,
    "report.json, guided": 300,
    "report.json, encoders": 100,
    "latents.json": 300,
    "answers": 12,
    "run.json, evaluated": 12,
    "config.toml, evaluated": 12,
    "compressed.json": 12,
    "config of a text encoder": 40,
    "config of a whole CLIP": 40,
}
"""So many ways, drawn at random but always the same, where reading takes its time."""


def ways_of(name, file):
    """(what was done, the damaged bytes)."""
    text = file.read_text()
    if file.suffix == ".toml":
        damages = damaged_toml(text)
    elif file.suffix == ".jsonl":
        damages = damaged_lines(text)
    else:
        damages = damaged(text, ours=name not in SAME)
    ways = list(damages)
    return random.Random(0).sample(ways, min(len(ways), MOST.get(name, len(ways))))


def wrong_with(by, folder, done, same):
    """What is wrong with what came of it; None where it was refused in a sentence, or is right."""
    try:
        result = by(folder)
    except HalfstepError as error:
        return None if "\n" not in str(error) and len(str(error)) < 1000 else f"{done}: {error}"
    except AssertionError as error:  # a command that was refused
        return None if "halfstep: " in str(error) else f"{done}: {error}"
    except Exception as error:
        return f"{done}: {type(error).__name__}: {error}"[:300]
    return None if result == same or same is None else f"{done}: taken silently"


@pytest.mark.parametrize("name", READS)
def test_no_traceback_and_no_silence(name, world, tmp_path):
    file, by = READS[name]
    copy, top = tmp_path / "kept", Path(file).parts[0]
    shutil.copytree(world, copy)
    right, wrong = by(copy), []
    for done, made in ways_of(name, world / file):
        for one in {top, "k"}:
            shutil.rmtree(copy / one, ignore_errors=True)
        if (world / top).is_dir():
            shutil.copytree(world / top, copy / top)
        (copy / file).write_bytes(made)
        free = name in SAME or done.endswith("sealed")
        wrong.append(wrong_with(by, copy, done, None if free else right))
    wrong = [one for one in wrong if one]
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong[:20]])
