"""Options from files: presets, a run's own config.toml, and what a file may not say."""

import json
import re
import tomllib
from pathlib import Path

import pytest

import halfstep
from halfstep.cli.commands.distill import DistillOptions
from halfstep.cli.commands.evaluate import Evaluate
from halfstep.cli.parse import parse
from halfstep.config.fields import flat
from halfstep.config.preset_files import preset_names
from halfstep.config.toml import from_file
from halfstep.errors import CheckpointError, ConfigError
from halfstep.methods import Progressive
from halfstep.training.run_config import read_config, write_config
from halfstep.workflows.options import DataOptions
from halfstep.workflows.sample import SampleConfig
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.cli.help_pages import KINDS

CODE = "import pathlib\npathlib.Path('RAN').write_text('')\n\n\ndef made(**any):\n    raise SystemExit(9)\n"
TYPED = {
    "train denoiser --data two-moons": [
        'net = "named_code:made"', 'net_config = { a = "named_code:made" }', 'net = "classifier:made"',
        'net_config = { "named_code:made" = "a" }',
    ],
    "train classifier --data digits": ['net = "named_code:made"'],
    "distill progressive --data two-moons --teacher t": [
        'net = "named_code:made"', 'features = "named_code:made"', "features = 'classifiers:made'",
    ],
    "distill guided --data two-moons --teacher t": [
        'student_net = "named_code:made"', 'features = "named_code:made"',
        'student = { build = "named_code:made" }',
    ],
    "distill knowledge --data digits --teacher t": [
        'recipe = "named_code:made"', 'teacher_net = "named_code:made"', 'net = "named_code:made"',
    ],
    "sample t": ['net = "named_code:made"', 'sampler = "named_code:made"'],
    "evaluate t": ['features = "named_code:made"', 'net = "named_code:made"', 'baselines = ["a:b"]'],
    "export t": ['net = "named_code:made"'],
}  # fmt: skip


SMUGGLED = {
    "train denoiser --data two-moons": [
        "schedule_config = { kind = 'linear', '--net=named_code:made' = '--no-flip' }",
        "schedule_config = { kind = '--net=named_code:made' }",
        "net_config = { '--net' = 'named_code:made' }",
        "net_config = { a = '-h' }",
    ],
    "distill knowledge --data digits": ["teacher = ['t', '--recipe=named_code:made']"],
    "sample t": [
        "prompt = ['a', '--net=named_code:made']",
        "prompt = ['--net', 'named_code:made']",
    ],
    "evaluate t": ["baselines = ['ddim', '--net=named_code:made']"],
}


@pytest.mark.parametrize("words, line", [(words, line) for words in TYPED for line in TYPED[words]])
def test_a_file_never_names_code_that_is_run(words, line, cli, tmp_path):
    (tmp_path / "named_code.py").write_text(CODE)
    (tmp_path / "shared.toml").write_text(f"{line}\n")
    for more in ((), ("--dry-run",)) if words.split()[0] in ("train", "distill") else ((),):
        out = () if words.startswith("evaluate") else ("--out", "x")
        status, _, err = cli(*words.split(), "--config", "shared.toml", *out, *more)
        option = line.partition(" ")[0].replace("_", "-")
        assert status == 2 and f"if you trust it, type --{option} " in err, err
        assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"named_code.py", "shared.toml"}


@pytest.mark.parametrize("words, line", [(w, line) for w in SMUGGLED for line in SMUGGLED[w]])
def test_a_file_s_value_is_never_an_option(words, line, cli, tmp_path):
    (tmp_path / "named_code.py").write_text(CODE)
    (tmp_path / "shared.toml").write_text(f"{line}\n")
    status, _, err = cli(*words.split(), "--config", "shared.toml", "--out", "x")
    assert status == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    assert {path.name for path in tmp_path.iterdir()} == {"named_code.py", "shared.toml"}


def test_a_file_s_numbers_below_0_are_values(tmp_path):
    (tmp_path / "a.toml").write_text(
        "schedule_config = { logsnr_min = -7.5, logsnr_max = '-1e-3' }"
    )
    words = ["--data", "two-moons", "--out", "x", "--config", str(tmp_path / "a.toml")]
    options = parse(TrainDenoiserConfig, words, prog="halfstep train denoiser")
    assert options.network.schedule_config == {"logsnr_min": "-7.5", "logsnr_max": "-1e-3"}


def test_what_is_typed_is_run_and_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.toml").write_text(
        'net = "named_code:made"\nsampler = "diffusers:DDIMScheduler"\n'
    )
    words = ["p", "--config", str(tmp_path / "a.toml"), "--out", "x"]
    options = parse(SampleConfig, [*words, "--net", "my_code:made"], prog="halfstep sample")
    assert (options.net, options.sampler) == ("my_code:made", "diffusers:DDIMScheduler")
    with pytest.raises(ConfigError, match="type --net named_code:made"):
        parse(SampleConfig, words, prog="halfstep sample")


@pytest.mark.parametrize(
    "line",
    ['features = "classifier:a/b"', 'features = "inception:file.pth"', 'data = "cifar10:folder"',
     'teacher = "a:b"', 'full_sampler = "diffusers:PNDMScheduler"', 'held_out = "fashion-mnist:x"',
     'baselines = ["ddim", "diffusers:UniPCMultistepScheduler"]', 'device = "cuda:1"'],
)  # fmt: skip
def test_places_and_schedulers_are_no_code(line, tmp_path):
    (tmp_path / "a.toml").write_text(line)
    words = parse(Evaluate, ["run", "--config", str(tmp_path / "a.toml")], prog="halfstep evaluate")
    name, _, value = line.partition(" = ")
    parsed = {**vars(words), **vars(words.evaluation)}[name]
    assert (list(parsed) if isinstance(parsed, tuple) else str(parsed)) == json.loads(value)


@pytest.mark.parametrize(
    "change", [lambda t: t[:20], lambda t: t.replace("7", "8"), lambda t: "a = ["]
)
def test_a_run_s_own_config_is_as_it_was_written(change, tmp_path):
    write_config(tmp_path, flat(DataOptions(data="digits", size=7)))
    assert read_config(tmp_path)["size"] == 7
    path = tmp_path / "config.toml"
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=r"config\.toml"):
        read_config(tmp_path)


def test_a_run_s_config_has_no_other_types(tmp_path):
    write_config(tmp_path, {"data": 3})
    with pytest.raises(CheckpointError, match="data must be text"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["a = nan", "batch_size = " + "9" * 9999, "a = " + "[" * 10**5, "\x80"]
)
def test_a_config_that_is_damaged_is_one_sentence(text, cli, tmp_path):
    (tmp_path / "a.toml").write_bytes(text.encode("latin-1"))
    status, _, err = cli(
        "train", "denoiser", "--config", "a.toml", "--data", "digits", "--out", "x"
    )
    assert status == 2 and "a.toml" in err and err.count("\n") == 1, err


def asked(kind, *words):
    return parse(kind, ["--out", "run", "--data", "digits", *map(str, words)], prog="halfstep")


def test_the_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text("batch_size = 7\nlearning_rate = 0.5\nflip = true\nbetas = [0.1, 0.2]\n")
    got = asked(TrainDenoiserConfig, "--config", file, "--learning-rate", "0.25", "--no-flip")
    assert (
        got.training.batch_size == 7 and got.training.learning_rate == 0.25 and not got.dataset.flip
    )
    assert got.training.betas == (0.1, 0.2) and got.training.max_grad_norm == 1.0
    assert asked(TrainDenoiserConfig, f"--config={file}").dataset.flip


def test_a_file_wins_over_a_preset(tmp_path):
    (tmp_path / "o.toml").write_text("learning_rate = 0.125")
    for words in (
        ["--preset", "digits", "--config", tmp_path / "o.toml"],
        ["--config", tmp_path / "o.toml", "--preset=digits"],
    ):
        got = asked(TrainDenoiserConfig, *words)
        assert (
            got.training.learning_rate == 0.125
            and got.dataset.data == "digits"
            and got.network.labels
        )


def test_every_type_of_option_comes_from_a_file(tmp_path):
    file = tmp_path / "o.toml"
    file.write_text(
        'net = "mlp"\nnet-config = { width = 32, bias = true, name = "a b", list = [1, 2] }\n'
        'time_offset = -1e-5\nlabels = true\npredicts = "eps"\nsize = 28\nout = "a folder"\n'
        "sampling_clip = 2\nupdates = 3\n"
    )
    got = parse(TrainDenoiserConfig, ["--data", "x", "--config", str(file)], prog="halfstep")
    assert got.network.net_config == {
        "width": "32", "bias": "true", "name": "a b", "list": "[1, 2]",
    }  # fmt: skip
    assert got.network.time_offset == -1e-5 and got.network.labels and got.dataset.size == 28
    assert got.network.predicts == "eps" and got.folder.out == Path("a folder")
    assert got.network.sampling_clip == 2.0 and got.method.updates == 3
    file.write_text("updates = [3, 4, 5]\ntimes = []\nstart = 8")
    got = asked(DistillOptions[Progressive], "--teacher", "t", "--config", file)
    assert got.method.updates == (3, 4, 5) and got.method.times == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ('batch_size = "128"', 'batch_size = "128", and batch_size is a whole number'),
        ("batch_size = 12.5", "batch_size is a whole number"),
        ("batch_size = true", "batch_size is a whole number"),
        ('learning_rate = "fast"', "learning_rate is a number"),
        ("flip = 1", "flip is true or false"),
        ('flip = "true"', "flip is true or false"),
        ("data = 3", "data is text"),
        ("out = ['a']", "out is text"),
        ("betas = [0.9]", "betas is a list of 2, a number each"),
        ("betas = 0.9", "betas is a list of 2, a number each"),
        ("updates = 100", "updates is a list, a whole number each"),
        ("updates = [100, 'x']", "updates is a list, a whole number each"),
        ('grid = "unifrm"', "grid is one of auto, uniform, trailing, logsnr, karras"),
        ("size = 'big'", "size is a whole number"),
        ("bacth_size = 3", "called 'bacth_size': perhaps you meant 'batch_size'"),
        ("[training]\nbatch = 3", "no option in 'o.toml' called 'training'"),
        ("batch_size = ", "is not TOML"),
        ("batch_size = 3\nbatch_size = 4", "is not TOML"),
    ],
)
def test_a_file_is_checked(text, message, tmp_path):
    (tmp_path / "o.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_file(DistillOptions[Progressive], tmp_path / "o.toml")


def test_a_table_is_a_table(tmp_path):
    (tmp_path / "o.toml").write_text("net_config = [1]")
    with pytest.raises(ConfigError, match="net_config is a table of names and values"):
        from_file(TrainDenoiserConfig, tmp_path / "o.toml")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--flip", "--size", "28", "--labels", "--net", "a.b:make"],
        ["--net-config", "width", "32", "name", 'a "quoted" näme 🙂\n', "--time-offset=-1e-07"],
        [
            "--betas",
            "0.5",
            "0.75",
            "--learning-rate",
            "1e-30",
            "--learning-rate-schedule",
            "constant",
        ],
    ],
)
def test_saved_options_come_back(words, tmp_path):
    options = asked(TrainDenoiserConfig, *words)
    write_config(tmp_path, flat(options))
    code = ["--net", "a.b:make"] if "a.b:make" in words else []  # which is typed again
    words = ["--config", str(tmp_path / "config.toml"), *code]
    assert parse(TrainDenoiserConfig, words, prog="halfstep") == options
    saved = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))
    assert saved.keys() == {name for name, value in flat(options).items() if value is not None}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_for_its_own_command(name):
    """A preset's head has the command that made it: a verb of ours with this preset."""
    text = (Path(halfstep.__file__).parent / "presets" / f"{name}.toml").read_text()
    command = re.search(r"^# command   halfstep (.*?) --preset (\S+) (.*)$", text, re.MULTILINE)
    assert command and command[2] == name
    words = ["--preset", name, *command[3].split()]
    options = flat(parse(KINDS[command[1]], words, prog="halfstep"))
    for key, value in tomllib.loads(text).items():
        got = options[key]
        if isinstance(value, dict):
            value = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
        assert (list(got) if isinstance(value, list) else got) == value, key
    assert name in preset_names(f"halfstep {command[1]}")


def test_a_value_after_an_equals_sign_is_all_that_an_option_takes():
    got = parse(SampleConfig, ["--out", "s", "--n=4", "runs/x"], prog="halfstep sample")
    assert (got.n, got.pipeline) == (4, "runs/x")
