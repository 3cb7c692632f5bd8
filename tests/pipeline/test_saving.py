"""A pipeline saved and loaded samples the same; a damaged or odd file is refused by its name."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import PARAMETERISATIONS, V
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models import build
from halfstep.pipeline import from_description, Pipeline, schedule_from
from tests.support.denoisers import named, READS
from tests.support.pipelines import NETS, pipeline
from tests.support.runs import rewritten

SCHEDULES = [
    Cosine(),
    VPLinear(),
    RectifiedFlow(),
    Karras(),
    BetaTable("scaled_linear", zero_snr=True),
]


def saved(made, folder):
    made.save(folder)
    return Pipeline.load(folder)


# What is saved is what is loaded.


@pytest.mark.parametrize("name", NETS)
def test_every_net_samples_the_same_after_save_and_load(name, tmp_path):
    made = pipeline(name)
    back = saved(made, tmp_path)
    held, read = made.denoiser.net.state_dict(), back.denoiser.net.state_dict()
    assert held.keys() == read.keys() and all(torch.equal(held[name], read[name]) for name in held)
    assert torch.equal(made.sample(3, steps=2), back.sample(3, steps=2))
    assert back.describe() == made.describe()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
@pytest.mark.parametrize("reads", READS, ids=named)
def test_every_schedule_and_parameterisation_comes_back(schedule, reads, tmp_path):
    made = pipeline("mlp", schedule=schedule, reads=reads, times=(uniform(1), uniform(4)))
    back = saved(made, tmp_path)
    assert back.denoiser.schedule == schedule and back.denoiser.parameterisation == reads
    if not reads.blind_to_data:  # an eps network may refuse t = 1
        assert torch.equal(made.sample(3, steps=4), back.sample(3, steps=4))


def test_all_fields_come_back(tmp_path):
    made = pipeline(
        "uvit",
        class_names=("cat", "dog"),
        null=2,
        clip=0.7,
        times=((1.0, 0.3, 0.0), uniform(1)),
        clipping="x0",
    )
    made.denoiser.time = NetTime("logsnr", 0.25, -1.5)
    back = saved(made, tmp_path)
    for field in ("shape", "times", "class_names", "null", "clip", "clipping"):
        assert getattr(back, field) == getattr(made, field), field
    assert back.denoiser.time == made.denoiser.time
    assert not back.denoiser.training
    assert all(p.requires_grad for p in back.denoiser.parameters())  # whose user may freeze some


def test_a_table_of_own_betas_comes_back(tmp_path):
    schedule = BetaTable("trained_betas", betas=(0.1, 0.2, 0.3), levels=3)
    assert saved(pipeline("mlp", schedule=schedule), tmp_path).denoiser.schedule == schedule


# What does not fit is refused by name.


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("net.model.enter.weight"), "lacks 1 tensors (net.model.enter.weight)"),
        (lambda t: t.update(extra=torch.zeros(2)), "has besides 1 tensors (extra)"),
        (
            lambda t: t.update({"net.model.enter.bias": torch.zeros(7)}),
            "has other shapes of 1 tensors (net.model.enter.bias)",
        ),
    ],
    ids=["missing", "extra", "misshaped"],
)
def test_loading_is_strict_and_names_tensors(change, message, tmp_path):
    made = pipeline("mlp")
    tensors = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    change(tensors)
    storage.save(tmp_path / "pipeline", tensors, made.describe())
    with pytest.raises(CheckpointError) as error:
        Pipeline.load(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    pipeline("mlp").save(tmp_path)
    weights = tmp_path / "pipeline.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pipeline\.safetensors' is damaged"):
        Pipeline.load(tmp_path)


def test_other_weights_of_the_same_shapes_are_damage_too(tmp_path):
    pipeline("mlp").save(tmp_path)
    weights = tmp_path / "pipeline.safetensors"
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights)
    with pytest.raises(CheckpointError, match="checksum"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda about: about.update(format=99), "has format 99 and this halfstep reads 1"),
        (lambda about: about.pop("format"), "lacks format"),
        (lambda about: about.pop("net"), "lacks net"),
        (lambda about: about["schedule"].update(name="cosin"), "perhaps you meant 'cosine'"),
        (lambda about: about["schedule"].update(logsnr=3.0), "perhaps you meant 'logsnr_min'"),
        (lambda about: about.update(parameterisation="w"), "there is no parameterisation 'w'"),
        (lambda about: about["net"].update(build="mpl"), "perhaps you meant 'mlp'"),
    ],
)
def test_an_odd_description_is_refused(change, message, tmp_path):
    pipeline("mlp").save(tmp_path)
    rewritten(tmp_path / "pipeline.json", change)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        Pipeline.load(tmp_path)


WRONG = (None, "x", -1, 1.5, [], {}, [[1]], {"a": 1}, True)
KINDS = {
    "net": (), "schedule": (), "parameterisation": ("x",), "time": (), "shape": ([],), "times": ([], [[1]]),
    "class_names": ([],), "clip": (None, 1.5, -1), "clipping": (), "null": (None, -1), "format": (),
    "steps": (-1,), "codec": (None,), "guidance_range": (None,), "sampler": ("x",),
    "quantised": (None, {}, {"a": 1}),
}  # fmt: skip
"""By key what is of the right type."""


@pytest.mark.parametrize("key", KINDS)
def test_every_key_has_its_type(key, tmp_path):
    pipeline("mlp").save(tmp_path)
    path = tmp_path / "pipeline.json"
    whole = path.read_bytes()
    for value in WRONG:
        if any(type(value) is type(fine) and value == fine for fine in KINDS[key]):
            continue
        path.write_bytes(whole)
        rewritten(path, lambda about, value=value: about.update({key: value}))
        with pytest.raises(CheckpointError, match=key):
            Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"dim": "2"},
        {"dim": [2]},
        {"width": None},
        {"depth": {}},
        {"width": 1.5},
        {"num_classes": "many"},
    ],
)
def test_a_network_that_cannot_be_built_is_the_fault_of_its_file(config, tmp_path):
    pipeline("mlp").save(tmp_path)
    rewritten(tmp_path / "pipeline.json", lambda about: about["net"]["config"].update(config))
    with pytest.raises((CheckpointError, ConfigError), match=r"mlp|dim|width|depth|classes"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize(
    "old, new",
    [("0.5", "0.4"), ('"logsnr_max": 20.0', '"logsnr_max": 60.0'), ('"scale": 1000.0', '"scale": 1001.0'),
     ('"clip": 1.0', '"clip": 1.5'), ('"v"', '"eps"'), ('"offset": 0.0', '"offset": 1.0'),
     ('"sha256": "', '"sha256": "0')],
)  # fmt: skip
def test_one_changed_digit_of_the_description_is_refused(old, new, tmp_path):
    replace(pipeline("mlp"), times=((1.0, 0.5, 0.0),), clip=1.0).save(tmp_path)
    path = tmp_path / "pipeline.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=r"pipeline\.json' is damaged: its checksum"):
        Pipeline.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00"])
def test_a_description_that_is_none_is_named(text, tmp_path):
    pipeline("mlp").save(tmp_path)
    (tmp_path / "pipeline.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"pipeline\.json' is damaged"):
        Pipeline.load(tmp_path)


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no pipeline"):
        Pipeline.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "about, message",
    [
        ({"name": "cosine", "logsnr_min": "low"}, "logsnr_min = 'low' cannot be"),
        ({"name": "beta-table", "levels": 10.5}, "levels = 10.5 cannot be"),
        ({"name": "beta-table", "zero_snr": 1}, "zero_snr = 1 cannot be"),
        ({"name": "beta-table", "kind": 3}, "kind = 3 cannot be"),
    ],
)
def test_options_of_a_schedule_have_their_types(about, message):
    with pytest.raises(ConfigError, match=message):
        schedule_from(about)


def test_a_whole_number_is_a_number_to_a_schedule():
    assert schedule_from({"name": "cosine", "logsnr_min": -15}) == Cosine(logsnr_min=-15)


# A user's own network.

OWN = """
from torch import nn


class Mine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x, t, cond=None):
        return self.layer(x)


def make(width=5):
    return Mine(width)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_net_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_net_of_a_test:make"
    sys.modules.pop("own_net_of_a_test", None)


def test_a_net_of_ones_own_comes_back_by_ones_own_word_only(own, tmp_path):
    made = Pipeline(Denoiser(build(own, {"width": 5}), Cosine(), V()), (5,))
    made.save(tmp_path / "saved")
    sys.modules.pop("own_net_of_a_test")

    with pytest.raises(CheckpointError, match=f"net='{own}'"):
        Pipeline.load(tmp_path / "saved")
    assert "own_net_of_a_test" not in sys.modules  # a file's word imports nothing

    back = Pipeline.load(tmp_path / "saved", net=own)
    assert torch.equal(back.sample(2, steps=2), made.sample(2, steps=2))


def test_a_function_builds_it_too_and_it_can_be_saved_again(own, tmp_path):
    made = Pipeline(Denoiser(build(own, {"width": 5}), Cosine(), V()), (5,))
    made.save(tmp_path / "saved")
    make = sys.modules["own_net_of_a_test"].make
    back = Pipeline.load(tmp_path / "saved", net=make)
    back.save(tmp_path / "again")
    again = Pipeline.load(tmp_path / "again", net=make)
    assert torch.equal(again.sample(2, steps=2), made.sample(2, steps=2))


def test_a_net_that_nobody_could_rebuild_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="this Linear was not made by"):
        Pipeline(Denoiser(nn.Linear(5, 5), Cosine(), V()), (5,)).save(tmp_path)


# What cannot be a pipeline, in Python and in a file.
UNFIT = {
    "times": ([[2.0, 1.0]], [[]], [[0.5]], [[0.0, 1.0]]),
    "null": (-3, 3, 50),
    "sampler": ("nope", "", "diffusers:Nope"),
    "direction": ("nope", "encode"),
    "clip": (-1.0, 0.0),
    "clipping": ("x0", "nope"),
    "guidance_range": ((5.0, 1.0),),
    "steps": (0,),
}


@pytest.mark.parametrize("field, value", [(f, v) for f, values in UNFIT.items() for v in values])
def test_what_cannot_be_a_pipeline_is_refused_also_where_a_file_says_it(field, value, tmp_path):
    made = pipeline(class_names=("a", "b"), null=2)
    with pytest.raises(ConfigError):
        replace(made, **{field: value})
    made.save(tmp_path)
    rewritten(tmp_path / "pipeline.json", lambda about: about.update({field: value}))
    with pytest.raises(CheckpointError, match=r"pipeline\.json"):
        Pipeline.load(tmp_path)


def test_a_student_takes_no_sampler_that_has_a_grid():
    with pytest.raises(ConfigError, match="dpmpp-3s"):
        pipeline("mlp", times=(uniform(2),), sampler="dpmpp-3s")


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["schedule"].update(logsnr_min=30.0),
        lambda about: about["schedule"].update(name="cosin"),
        lambda about: about["time"].update(scale=0.0),
        lambda about: about["net"]["config"].update(depth=-1),
        lambda about: about.update(parameterisation="w"),
    ],
)
def test_what_a_file_says_of_a_denoiser_is_refused_by_its_name(change, tmp_path):
    pipeline().save(tmp_path)
    rewritten(tmp_path / "pipeline.json", change)
    with pytest.raises(CheckpointError, match=r"pipeline\.json"):
        Pipeline.load(tmp_path)


def test_every_parameterisation_has_a_name_on_disk():
    for name, reads in PARAMETERISATIONS.items():
        about = pipeline("mlp", reads=reads).describe()
        assert about["parameterisation"] == name
        assert from_description(json.loads(json.dumps(about))).denoiser.parameterisation == reads


def test_the_folder_of_a_run_says_how_its_student_is_loaded(tmp_path):
    with pytest.raises(CheckpointError, match=r"no pipeline\.json$"):
        Pipeline.load(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(CheckpointError, match=r"no pipeline\.json; .*student\(\)$"):
        Pipeline.load(tmp_path)
