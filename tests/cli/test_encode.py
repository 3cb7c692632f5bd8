"""`halfstep encode`, `sample --noise`, `--images`, `--strength`, `--mask`, and a run of encoders judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep import storage
from halfstep.cli import main
from halfstep.data import load
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.diffusion.time_grids import uniform
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.workflows.noise_file import NoiseFile

SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "in_chans": 1}
DIGITS = tuple(map(str, range(10)))


def pipeline(seed=0, class_names=DIGITS, **rest):
    torch.manual_seed(seed)
    net = build("uvit", SMALL | {"num_classes": len(class_names) + 1 if class_names else -1})
    null = len(class_names) if class_names else None
    made = Denoiser(net, Cosine(), V()).freeze()
    return Pipeline(made, (1, 8, 8), class_names=class_names, null=null, clip=1.0, **rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Teachers, students, three pictures, a mask, and a run of encoders."""
    out = tmp_path_factory.mktemp("encode")
    pipeline().save(out / "t")
    pipeline(1).save(out / "other")
    pipeline(2, class_names=()).save(out / "free")
    pipeline(3, class_names=("dogs", "cats")).save(out / "pets")
    pipeline(0, times=(uniform(2),)).save(out / "student")
    pipeline(0, times=(uniform(2),), direction="invert").save(out / "encoder")
    rng = np.random.default_rng(0)
    for kind, k in (("dogs", 1), ("cats", 2), ("cats", 3)):
        (out / "photos" / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(out / "photos" / kind / f"{k}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :3] = 255  # repainted
    Image.fromarray(mask).save(out / "mask.png")
    clear = Image.fromarray(mask).convert("RGBA")
    clear.putalpha(Image.fromarray(mask))
    clear.save(out / "clear.png")
    words = ["--teacher", str(out / "t"), "--data", "digits", "--start", "4", "--stop", "1"]
    words += ["--updates", "1", "--batch-size", "4", "--out", str(out / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        assert main(["distill", "encoder", *words]) == 0
    return out


@pytest.fixture
def cli(cli, folder, monkeypatch):
    """Types a line in the folder of all that."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda line: cli(*line.split())


def digits(rows):
    batch = load("digits").batch(torch.tensor(rows))
    return batch.x0, batch.cond.label.tolist()


def read(path):
    with Image.open(path) as opened:
        return np.array(opened)


def numbers(path):
    return torch.from_numpy(np.load(path)["images"])


def test_encode_and_back(cli):
    status, out, err = cli(
        "encode t --images digits --n 5 --first 3 --steps 4 --out a/n.safetensors"
    )
    assert status == 0 and not err and "halfstep sample t --noise a/n.safetensors" in out
    file = NoiseFile.load(Path("a/n.safetensors"))
    x, labels = digits(range(3, 8))
    want = Pipeline.load("t").encode(x, steps=4, labels=labels)
    assert torch.equal(file.noise, want) and file.labels.tolist() == labels
    assert torch.equal(file.images, x)
    about = json.loads(Path("a/n.json").read_text())
    assert about["steps"] == 4 and about["images"] == "digits" and about["first"] == 3
    assert (
        about["pipeline"] == "t"
        and about["guidance_scale"] == 1
        and about["class_names"] == list(DIGITS)
    )
    assert read("a/n.png").shape == (4 * 17, 4 * (5 * 9 - 1))  # images above, noise below

    assert cli("sample t --noise a/n.safetensors --steps 3 --out a/back --npz")[0] == 0
    back = Pipeline.load("t").sample(5, steps=3, labels=labels, noise=want)
    assert torch.equal(numbers("a/back/samples.npz"), back)
    shown = read("a/back/grid.png")[::4, ::4]
    above = ((x[:, 0] + 1) * 127.5).round().byte().numpy()
    assert (shown[:8, :8] == above[0]).all() and (shown[:8, -8:] == above[4]).all()

    assert (
        cli("sample other --noise a/n.safetensors --n 2 --labels 7 --steps 2 --out b --npz")[0] == 0
    )
    other = Pipeline.load("other").sample(2, steps=2, labels=[7, 7], noise=want[:2])
    assert torch.equal(numbers("b/samples.npz"), other)


def test_an_encoder_and_what_it_may_not(cli):
    status, out, _ = cli("encode encoder --images digits --n 2 --out e.safetensors")
    assert status == 0 and "halfstep sample TEACHER --noise e.safetensors" in out
    x, labels = digits(range(2))
    want = Pipeline.load("encoder").encode(x, labels=labels)
    assert torch.equal(storage.load(Path("e"))[0]["noise"], want)
    status, _, err = cli("sample encoder --noise e.safetensors --out x")
    assert status == 2 and "from data to noise" in err
    status, _, err = cli("encode student --images digits --out x.safetensors")
    assert status == 2 and "encode with its teacher, or with a student made for it" in err


def test_pictures_by_name_of_class(cli):
    """Classes go by name, so a folder may hold some of them; one picture has none."""
    assert cli("encode pets --images photos --steps 2 --out p.safetensors")[0] == 0
    file = NoiseFile.load(Path("p.safetensors"))
    assert file.labels.tolist() == [1, 1, 0] and file.images.shape == (3, 1, 8, 8)
    status, _, err = cli("encode t --images photos --out x.safetensors")
    assert status == 2 and "images of 'cats', which is no class of this model (0, 1, 2" in err
    assert cli("encode t --images photos --labels 4,5 --steps 1 --out q.safetensors")[0] == 0
    assert NoiseFile.load(Path("q.safetensors")).labels.tolist() == [4, 5, 4]
    one = "encode pets --images photos/dogs/1.png --steps 1 --out r.safetensors"
    status, _, err = cli(one)
    assert status == 2 and "write --labels and their numbers (2 says none)" in err
    assert cli(f"{one} --labels 2")[0] == 0
    status, _, err = cli("sample t --noise r.safetensors --out x")
    assert status == 2 and "a model of other classes: say by --labels" in err
    assert cli("sample free --noise r.safetensors --steps 1 --out f.png")[0] == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("encode t --images digits --out x.png", "'x.png' is no name for noise: write for example"),
        ("encode t --images digits --n 0 --out x.safetensors", "n must be at least 1"),
        ("encode t --images digits --first 9999 --out x.safetensors", "ends before image 9999"),
        ("encode t --images two-moons --out x.safetensors", "holds samples of shape [2] and this"),
        ("encode t --images mask.txt --out x.safetensors", "no file or folder mask.txt"),
        ("encode t --images digits --labels 11 --out x.safetensors", "labels from 0 to 10"),
        ("sample t --noise none.safetensors --out x", "there is no noise at 'none.safetensors'"),
        ("sample t --noise t/pipeline.safetensors --out x", "holds no noise: give what halfstep"),
        ("sample t --images digits --out x", "--images alone does not say what becomes of them"),
        ("sample t --strength 0.5 --out x", "are about images: give them as --images"),
        ("sample t --mask mask.png --out x", "are about images: give them as --images"),
        ("sample t --images digits --strength 0 --out x", "strength lies in (0, 1], got 0"),
        ("sample student --images digits --strength 0.3 --out x", "write strength=1 or 0.5"),
        ("sample t --images digits --mask clear.png --out x", "transparent parts, and a mask is"),
        ("sample t --images digits --mask nowhere.png --out x", "there is no file nowhere.png"),
        ("sample t --images photos --strength .5 --out x", "'cats', which is no class of this"),
    ],
)  # fmt: skip
def test_one_sentence(cli, folder, line, message):
    status, _, err = cli(line)
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert not (folder / "x").exists() and not (folder / "x.safetensors").exists()


def test_noise_with_what_does_not_go_with_it(cli):
    assert cli("encode t --images digits --n 2 --steps 1 --out n2.safetensors")[0] == 0
    status, _, err = cli("sample t --noise n2.safetensors --images digits --strength 1 --out x")
    assert status == 2 and "leave --images, --strength, --mask and --first out" in err
    status, _, err = cli("sample t --noise n2.safetensors --n 3 --out x")
    assert status == 2 and "holds 2 of noise, asked for 3" in err
    good = storage.load(Path("n2"))
    about = {k: v for k, v in good[1].items() if k != "sha256"}
    for tensors, changed, message in (
        ({"noise": good[0]["noise"]}, {}, "its tensors do not belong together"),
        (good[0] | {"more": torch.zeros(1)}, {}, "its tensors do not belong together"),
        (good[0] | {"noise": good[0]["noise"] * torch.nan}, {}, "do not belong together"),
        (good[0] | {"labels": torch.zeros(3, dtype=torch.int64)}, {}, "do not belong together"),
        (good[0], {"format": 9}, "has format 9 and this halfstep reads 1"),
    ):
        storage.save(Path("bad"), tensors, about | changed)
        status, _, err = cli("sample t --noise bad.safetensors --out x")
        assert status == 2 and message in err, err


def test_strength_one_is_sample(cli):
    base = "--n 5 --first 2 --labels 3,1 --steps 2 --npz --out"
    for name in ("t", "student"):
        assert cli(f"sample {name} {base} one-{name}")[0] == 0
        assert cli(f"sample {name} --images digits --strength 1 {base} two-{name}")[0] == 0
        assert torch.equal(numbers(f"one-{name}/samples.npz"), numbers(f"two-{name}/samples.npz"))
        files = [f"{k:06d}.png" for k in range(2, 7)]
        for file in files:
            assert Path(f"one-{name}", file).read_bytes() == Path(f"two-{name}", file).read_bytes()


def test_image_to_image(cli):
    """Image k of the data with noise k of the seed; a class of its own by default."""
    status, out, _ = cli(
        "sample t --images digits --n 3 --first 4 --strength .6 --steps 4 --npz --out i"
    )
    x, labels = digits(range(4, 7))
    want = Pipeline.load("t").sample(3, first=4, steps=4, labels=labels, images=x, strength=0.6)
    assert status == 0 and torch.equal(numbers("i/samples.npz"), want)
    assert "3 samples in 3 steps" in out  # 0.6, 0.5, 0.25
    assert (
        cli("sample free --images photos/dogs/1.png --n 2 --strength .5 --steps 2 --npz --out j")[0]
        == 0
    )
    x = numbers("j/samples.npz")
    assert x.shape == (2, 1, 8, 8) and not torch.equal(x[0], x[1])  # one image, other noise


def test_pixels_at_black_come_back_to_the_bit(cli):
    for name in ("t", "student"):
        line = f"sample {name} --images digits --mask mask.png --n 3 --steps 2 --labels 8 --out k-{name}"
        assert cli(line)[0] == 0
        originals = ((digits(range(3))[0][:, 0] + 1) * 127.5).round().byte().numpy()
        for k in range(3):
            got = read(f"k-{name}/{k:06d}.png")
            assert (got[:, 3:] == originals[k][:, 3:]).all()
            assert (got[:, :3] != originals[k][:, :3]).any()


def test_a_run_of_encoders_is_judged(cli, folder):
    line = "evaluate run --samples 12 --full 4 --shown 5"
    status, out, err = cli(line)
    assert status == 0, err
    assert "run: 2 encoders" in out and "student, 1 step" in out and "Fréchet" not in out
    report = json.loads((folder / "run" / "report.json").read_text())
    rows = report["reconstruction"]["rows"]
    assert [r["name"] for r in rows] == [
        "teacher, 4 steps", "teacher, 2 steps", "student, 2 steps", "teacher, 1 step",
        "student, 1 step",
    ]  # fmt: skip
    assert report["verdict"].startswith("Encoded in 1 step and decoded in the teacher's 4")
    x, labels = digits(torch.arange(12).mul(1797).div(12, rounding_mode="floor").tolist())
    teacher = Pipeline.load("t")
    up = Pipeline.load("run/stages/0002-steps").encode(x, labels=labels)
    off = teacher.sample(12, steps=4, labels=labels, noise=up) - x
    assert rows[2]["full"]["value"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-4)
    with np.load(folder / "run" / "report.npz") as pictures:
        assert pictures["grid"].shape == (6, 5, 8, 8, 1) and pictures["grid_labels"][0] == "images"
    assert "Encode, then decode" in (folder / "run" / "report.html").read_text()
    before = (folder / "run" / "report.html").read_bytes()
    assert cli("report run")[0] == 0 and (folder / "run" / "report.html").read_bytes() == before
    status, _, err = cli("compare --beside run --out both")
    assert status == 2 and "encode images and draw none" in err
    np.savez("held.npz", images=np.zeros((4, 8, 8, 1), np.uint8), labels=np.arange(4))
    assert cli(f"{line} --held-out held.npz --counts 2")[0] == 0
    report = json.loads((folder / "run" / "report.json").read_text())["reconstruction"]
    assert report["held_out"] and report["images"] == 4 and len(report["rows"]) == 3


def test_the_run_says_what_to_type(cli):
    _, out, _ = cli("distill encoder --config run/config.toml")
    squeezed = " ".join(out.split())
    assert "run --steps 1 --images DATA --out noise.safetensors" in squeezed
    assert "halfstep evaluate" in squeezed and "halfstep sample" not in squeezed
