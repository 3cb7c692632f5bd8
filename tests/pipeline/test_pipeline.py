"""Pipeline: what is saved is what is loaded, and a sample depends on its seed and number alone."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import PARAMETERISATIONS, V
from halfstep.diffusion.samplers import ancestral, sample
from halfstep.diffusion.schedules import BetaTable, Cosine, Karras, RectifiedFlow, VPLinear
from halfstep.diffusion.time_grids import uniform
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.models import build
from halfstep.pipeline import from_description, Pipeline, schedule_from
from halfstep.rng import sample_noise
from tests.support.denoisers import named, READS
from tests.support.progress import Ledger
from tests.support.runs import rewritten

UVIT = {
    "img_size": [4, 6],
    "patch_size": 2,
    "in_chans": 3,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
}
BLOCKS = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
NETS = {
    "mlp": ({"dim": 5, "width": 16, "depth": 1}, (5,)),
    "uvit": (UVIT, (3, 4, 6)),
    "unet": ({"in_channels": 3, "sample_size": [4, 6], **BLOCKS}, (3, 4, 6)),
    "dit": (
        {"sample_size": 6, "patch_size": 2, "in_channels": 3, "num_layers": 1,
         "num_attention_heads": 2, "attention_head_dim": 6, "norm_num_groups": 3},
        (3, 6, 6),
    ),
}  # fmt: skip
SCHEDULES = [
    Cosine(),
    VPLinear(),
    RectifiedFlow(),
    Karras(),
    BetaTable("scaled_linear", zero_snr=True),
]


def shaken(net):
    """Away from the zeros that some networks start from."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def pipeline(name="uvit", *, schedule=None, reads=None, class_names=(), null=None, **more):
    config, shape = NETS[name]
    reads = reads or V()
    config = dict(config)
    if class_names:
        config["num_classes"] = len(class_names) + (null is not None)
    if reads.outputs == 2:
        config |= {"mlp": {"out_dim": 10}, "uvit": {"out_chans": 6}}[name]
    denoiser = Denoiser(shaken(build(name, config)), schedule or Cosine(), reads)
    return Pipeline(denoiser.freeze(), shape, class_names=class_names, null=null, **more)


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
    # A matrix product of the same numbers at another address may differ in its last bit.
    torch.testing.assert_close(made.sample(3, steps=2), back.sample(3, steps=2), rtol=0, atol=1e-5)
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
        "uvit", class_names=("cat", "dog"), null=2, clip=0.7, times=((1.0, 0.3, 0.0), uniform(1))
    )
    made.denoiser.time = NetTime("logsnr", 0.25, -1.5)
    back = saved(made, tmp_path)
    for field in ("shape", "times", "class_names", "null", "clip"):
        assert getattr(back, field) == getattr(made, field), field
    assert back.denoiser.time == made.denoiser.time
    assert not back.denoiser.training
    assert all(p.requires_grad for p in back.denoiser.parameters())  # whose user may freeze some


def test_a_table_of_own_betas_comes_back(tmp_path):
    schedule = BetaTable("trained_betas", betas=(0.1, 0.2, 0.3), levels=3)
    assert saved(pipeline("mlp", schedule=schedule), tmp_path).denoiser.schedule == schedule


# What does not fit is refused by name.


@pytest.mark.parametrize(
    "change, said",
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
def test_loading_is_strict_and_names_tensors(change, said, tmp_path):
    made = pipeline("mlp")
    tensors = {k: v.clone() for k, v in made.denoiser.state_dict().items()}
    change(tensors)
    storage.save(tmp_path / "pipeline", tensors, made.describe())
    with pytest.raises(CheckpointError) as error:
        Pipeline.load(tmp_path)
    assert said in str(error.value) and str(tmp_path) in str(error.value)


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
    "change, said",
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
def test_an_odd_description_is_refused(change, said, tmp_path):
    pipeline("mlp").save(tmp_path)
    rewritten(tmp_path / "pipeline.json", change)
    with pytest.raises((CheckpointError, ConfigError), match=said):
        Pipeline.load(tmp_path)


WRONG = (None, "x", -1, 1.5, [], {}, [[1]], {"a": 1}, True)
KINDS = {
    "net": (), "schedule": (), "parameterisation": ("x",), "time": (), "shape": ([],), "times": ([], [[1]]),
    "class_names": ([],), "clip": (None, 1.5, -1), "null": (None, -1), "format": (), "steps": (-1,),
    "codec": (None,), "guidance_range": (None,), "sampler": ("x",), "quantised": (None, {}, {"a": 1}),
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
    "about, said",
    [
        ({"name": "cosine", "logsnr_min": "low"}, "logsnr_min = 'low' cannot be"),
        ({"name": "beta-table", "levels": 10.5}, "levels = 10.5 cannot be"),
        ({"name": "beta-table", "zero_snr": 1}, "zero_snr = 1 cannot be"),
        ({"name": "beta-table", "kind": 3}, "kind = 3 cannot be"),
    ],
)
def test_options_of_a_schedule_have_their_types(about, said):
    with pytest.raises(ConfigError, match=said):
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


# Samples.


class Seen(nn.Module):
    """Remembers what it was shown, and puts out v = 0."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen = nn.Parameter(torch.zeros(())), []

    def forward(self, x, t, cond=None):
        self.seen.append((x.clone(), None if cond is None else cond.label.clone()))
        return self.scale * x


def watched(shape=(3, 4, 6), **more):
    net = Seen()
    return net, Pipeline(Denoiser(net, Cosine(), V()), shape, **more)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 256])
@pytest.mark.parametrize("first", [0, 2])
def test_the_noise_of_an_image_depends_on_seed_and_number_alone(batch, first):
    net, made = watched()
    made.sample(7 - first, seed=5, steps=1, batch=batch, first=first)
    noise = torch.cat([x for x, _ in net.seen])
    alone = [sample_noise(5, [k], (3, 4, 6)) for k in range(first, 7)]
    assert torch.equal(noise, torch.cat(alone))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp-2m", "ancestral"])
def test_an_image_is_the_same_in_any_batch(sampler):
    made = pipeline("uvit")
    whole = made.sample(7, seed=11, steps=4, sampler=sampler)
    for batch, first in [(1, 0), (3, 0), (256, 3), (2, 5)]:
        part = made.sample(7 - first, seed=11, steps=4, sampler=sampler, batch=batch, first=first)
        torch.testing.assert_close(part, whole[first:], rtol=0, atol=1e-5)


def test_every_step_of_an_ancestral_walk_draws_its_own_noise():
    made, ids = pipeline("uvit"), range(2, 5)

    def fresh(like, step):
        assert step > 0  # 0 is what the walk starts from
        return sample_noise(9, ids, like.shape[1:], step=step)

    noise, step = sample_noise(9, ids, made.shape), ancestral(fresh, variance=0.3)
    want = sample(made.denoiser, noise, uniform(4), step)
    got = made.sample(3, seed=9, first=2, steps=4, sampler="ancestral", variance=0.3)
    assert torch.equal(got, want)


def test_seeds_and_numbers_differ():
    made = pipeline("mlp")
    a, b = made.sample(4, steps=1), made.sample(4, seed=1, steps=1)
    rows = torch.cat([a, b])
    assert len({tuple(row.tolist()) for row in rows}) == 8


def test_labels_go_to_their_images():
    net, made = watched(class_names=("a", "b", "c"))
    made.sample(5, steps=1, batch=2, first=1)
    assert torch.cat([y for _, y in net.seen]).tolist() == [1, 2, 0, 1, 2]
    net.seen.clear()
    made.sample(3, steps=1, batch=2, labels=[2, 0, 2])
    assert torch.cat([y for _, y in net.seen]).tolist() == [2, 0, 2]


def test_the_null_label_may_be_asked_for_where_there_is_one():
    net, made = watched(class_names=("a", "b"), null=2)
    made.sample(1, steps=1, labels=[2])
    assert net.seen[0][1].tolist() == [2]


@pytest.mark.parametrize(
    "n, labels, said",
    [
        (2, [0], "2 samples need 2 labels from 0 to 1, got 1"),
        (1, [0, 1], "1 samples need 1 labels from 0 to 1, got 2"),
        (1, [2], r"from 0 to 1, got 1: \(2\)"),
        (1, [-1], r"from 0 to 1, got 1: \(-1\)"),
        (0, [1], "0 samples need 0 labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(n, labels, said):
    _, made = watched(class_names=("a", "b"))
    with pytest.raises(ConfigError, match=said):
        made.sample(n, steps=1, labels=labels)


def test_labels_without_classes_are_refused():
    with pytest.raises(ConfigError, match="has no classes: leave labels out"):
        pipeline("mlp").sample(1, steps=1, labels=[0])


def test_guidance_needs_a_null_class():
    made = pipeline("uvit", class_names=("a", "b"))
    with pytest.raises(ConfigError, match="no null class"):
        made.sample(2, steps=1, guidance_scale=2.0)


def test_guidance_moves_away_from_the_null_class():
    """With a linear pull s, guided = null + s (label - null), where both are seen alone."""
    made = pipeline("uvit", class_names=("a", "b"), null=2)
    label, null = made.sample(2, steps=1), made.sample(2, steps=1, labels=[2, 2])
    guided = made.sample(2, steps=1, guidance_scale=3.0)
    torch.testing.assert_close(guided, null + 3 * (label - null), rtol=0, atol=1e-4)
    assert (label - null).abs().max() > 1e-3


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n):
    made = pipeline("uvit", class_names=("a", "b"))
    assert made.sample(n, steps=1).shape == (n, 3, 4, 6)
    assert made.sample(n, steps=1, labels=[0] * n).shape == (n, 3, 4, 6)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"n": -1}, "n must be at least 0, got -1"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"first": -2}, "first must be at least 0, got -2"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sampler": "dimm"}, "perhaps you meant 'ddim'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        pipeline("mlp").sample(**{"n": 1, **options})


def test_whole_numbers_of_numpy_are_whole_numbers_and_floats_are_not():
    made = pipeline("mlp")
    assert torch.equal(
        made.sample(np.int64(2), seed=np.uint8(3), batch=np.int32(1), steps=np.int64(2)),
        made.sample(2, seed=3, batch=1, steps=2),
    )
    for wrong in ({"n": 2.0}, {"n": True}, {"n": 1, "steps": "4"}, {"n": 1, "batch": 1.5}):
        with pytest.raises(ConfigError, match="whole number"):
            made.sample(**wrong)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"noise": np.zeros((2, 5))}, "tensor"),
        ({"noise": [[0.0] * 5] * 2}, "tensor"),
        ({"noise": torch.zeros(2, 5, dtype=torch.int64)}, "floats"),
        ({"images": torch.zeros(2, 5), "mask": np.ones((2, 5), bool)}, "tensor"),
        ({"images": torch.zeros(2, 5), "mask": [True]}, "tensor"),
        ({"images": torch.zeros(2, 5).numpy()}, "tensor"),
    ],
)
def test_only_tensors_are_taken_for_tensors(options, said):
    with pytest.raises((ConfigError, DataError), match=said):
        pipeline("mlp").sample(2, **options)


def test_a_network_without_parameters_is_on_the_cpu():
    class Still(nn.Module):
        def forward(self, x, t, cond=None):
            return torch.zeros_like(x)

    made = Pipeline(Denoiser(Still(), Cosine(), V()), (5,))
    assert made.device == torch.device("cpu")
    assert made.sample(2, steps=2).shape == (2, 5) and made.sample(0).shape == (0, 5)
    assert made.encode(torch.zeros(2, 5), steps=1).shape == (2, 5)


# What cannot be a pipeline, in Python and in a file.
UNFIT = {
    "times": ([[2.0, 1.0]], [[]], [[0.5]], [[0.0, 1.0]]),
    "null": (-3, 3, 50),
    "sampler": ("nope", "", "diffusers:Nope"),
    "direction": ("nope", "encode"),
    "clip": (-1.0, 0.0),
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


@pytest.mark.parametrize("size", [("8", "8"), (2.5, 2.5), (0, 4), (-4, 4), (True, 4)])
def test_another_size_is_of_whole_numbers(size):
    with pytest.raises(ConfigError, match=r"height|width"):
        pipeline().at_size(*size)


def test_a_clip_bounds_images_and_none_does_not():
    wild, clipped = watched()[1], watched(clip=0.4)[1]
    wild.denoiser.net.scale.data.fill_(5.0)
    clipped.denoiser.net.scale.data.fill_(5.0)
    assert wild.sample(5, steps=3).abs().max() > 1
    assert clipped.sample(5, steps=3).abs().max() <= 0.4


def test_progress_is_told_every_step_of_every_batch():
    told = Ledger()
    pipeline("mlp").sample(7, steps=3, batch=2, progress=told)
    assert told.steps == 3 * 4
    images = pipeline("mlp").sample(7, steps=3)
    told = Ledger()  # half the walk
    pipeline("mlp").sample(7, steps=4, batch=2, images=images, strength=0.5, progress=told)
    assert told.steps == 2 * 4
    told = Ledger()
    pipeline("mlp").sample(0, steps=3, progress=told)
    assert told.steps == 0


def test_sampling_leaves_dropout_off_and_the_global_generator_alone():
    made = pipeline("mlp")
    made.denoiser.train()
    before = torch.random.get_rng_state()
    made.sample(2, steps=2, sampler="ancestral")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not made.denoiser.training


# Students.


def test_a_student_takes_its_own_steps_only():
    made = pipeline("mlp", times=(uniform(8), uniform(2), (1.0, 0.7, 0.3, 0.1, 0.0)))
    assert made.grid() == uniform(2) and made.grid(4) == (1.0, 0.7, 0.3, 0.1, 0.0)
    with pytest.raises(ConfigError, match="not distilled for 3 steps: it can take 2 or 4 or 8"):
        made.sample(1, steps=3)


def test_a_teacher_takes_any_number_and_64_by_default():
    made = pipeline("mlp")
    assert made.grid() == uniform(64) and made.grid(3) == uniform(3)


def test_a_student_keeps_all_but_the_network(tmp_path):
    made = pipeline("uvit", class_names=("a", "b"), null=2, clip=1.0)
    student = replace(made, denoiser=made.denoiser.trainable_copy(), times=(uniform(2),))
    assert student.times == (uniform(2),) and student.class_names == made.class_names
    assert student.clip == 1.0 and student.null == 2
    assert torch.equal(student.sample(2), made.sample(2, steps=2))


def test_every_parameterisation_has_a_name_on_disk():
    for name, reads in PARAMETERISATIONS.items():
        about = pipeline("mlp", reads=reads).describe()
        assert about["parameterisation"] == name
        assert from_description(json.loads(json.dumps(about))).denoiser.parameterisation == reads


@pytest.mark.parametrize("shape", [(), (0,), (-1,), (2.5,), (True,), (1, 0, 8), "12", 3])
def test_a_sample_has_axes_of_one_or_more(shape):
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1})
    with pytest.raises(ConfigError, match="shape"):
        Pipeline(Denoiser(net, Cosine(), V()), shape=shape)


@pytest.mark.parametrize("options", [{"n": True}, {"batch": True}, {"seed": True}, {"first": True}])
def test_a_truth_value_is_no_number(options):
    net = build("mlp", {"dim": 2, "width": 8, "depth": 1})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), shape=(2,))
    with pytest.raises(ConfigError, match=next(iter(options))):
        pipeline.sample(**{"n": 1, "steps": 1, **options})
