"""Pipelines of diffusers as halfstep's: each samples what its own pipeline samples."""

import json
import warnings

import pytest
import torch

from halfstep import Pipeline
from halfstep.diffusion.prediction import Eps, V, Velocity
from halfstep.diffusion.schedules import BetaTable, RectifiedFlow
from halfstep.errors import CheckpointError, ConfigError
from halfstep.pipeline.from_diffusers.families import FAMILIES as KNOWN, Family
from halfstep.pipeline.from_diffusers.schedule import imported_schedule
from tests.support import families
from tests.support.families import FAMILIES, own_samples, PROMPTED, SIZED, TEXTS, UNGUIDED

FAST = ("ddim", "stable-diffusion", "sd3")
each = pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)


def sampled(pipeline, name, noise, scale=1.0, **options):
    prompts = {"prompts": TEXTS} if name in PROMPTED else {}
    return pipeline.sample(
        len(noise), noise=noise, steps=4, guidance_scale=scale, latents=True, **prompts, **options
    )


@each
def test_a_pipeline_samples_as_its_own(name, tmp_path):
    """From the object and from its folder, with and without guidance, and after it was saved and loaded."""
    theirs = FAMILIES[name]()
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_diffusers(theirs, size=SIZED.get(name))
    noise = torch.randn(2, *ours.shape, generator=torch.Generator().manual_seed(7))
    for scale in (1.0,) if name in UNGUIDED else (1.0, 3.0):
        expected = own_samples(name, theirs, noise, 4, scale)
        error = (sampled(ours, name, noise, scale) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    of_folder = Pipeline.from_diffusers(tmp_path / "theirs", size=SIZED.get(name))
    last = sampled(ours, name, noise, scale)
    assert torch.equal(sampled(of_folder, name, noise, scale), last)
    of_folder.save(tmp_path / "saved")  # its text encoders are found where they were
    assert torch.equal(sampled(Pipeline.load(tmp_path / "saved"), name, noise, scale), last)
    ours.save(tmp_path / "ours")
    again = Pipeline.load(tmp_path / "ours")
    if name in PROMPTED:
        again = again.with_texts(ours.texts)
    assert torch.equal(sampled(again, name, noise, scale), last)


def test_a_codec_decodes_as_its_own_pipeline_does():
    theirs = families.sd3()
    theirs.set_progress_bar_config(disable=True)
    ours, noise = Pipeline.from_diffusers(theirs), torch.randn(2, 4, 8, 8)
    images = ours.sample(2, noise=noise, steps=2, prompts=TEXTS)
    with torch.no_grad():
        own = theirs(
            TEXTS,
            latents=noise,
            num_inference_steps=2,
            guidance_scale=1.0,
            output_type="pt",
            height=16,
            width=16,
        )
    torch.testing.assert_close(images / 2 + 0.5, own.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kind",
    [
        "PNDM",
        "EulerDiscrete",
        "DPMSolverMultistep",
        "HeunDiscrete",
        "LMSDiscrete",
        "UniPCMultistep",
    ],
)
def test_a_pipeline_samples_with_any_scheduler_that_it_was_published_with(kind):
    import diffusers

    theirs = families.stable_diffusion()
    with warnings.catch_warnings(action="ignore"):  # numpy's, from within diffusers
        theirs.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(
            theirs.scheduler.config
        )
    theirs.set_progress_bar_config(disable=True)
    ours, noise = Pipeline.from_diffusers(theirs), torch.randn(2, 4, 8, 8)
    expected = own_samples("stable-diffusion", theirs, noise, 4, 3.0)
    error = (
        sampled(ours, "stable-diffusion", noise, 3.0) - expected
    ).abs().max() / expected.abs().max()
    assert error < 1e-5 and len(ours.grid(4)) == 5


def test_a_ddpm_draws_its_noise_sample_by_sample():
    """Samples do not depend on the batch."""
    ours = Pipeline.from_diffusers(families.ddpm_pipeline())
    all_three = ours.sample(3, steps=3)
    torch.testing.assert_close(ours.sample(1, steps=3, first=2), all_three[2:], atol=1e-5, rtol=0)
    assert not torch.allclose(all_three, ours.sample(3, steps=3, seed=1), atol=0.1)


SCHEDULERS = {
    "linear": ({"_class_name": "DDPMScheduler"}, BetaTable("linear"), Eps(), 1.0),
    "no clip": (
        {"_class_name": "DDPMScheduler", "clip_sample": False},
        BetaTable("linear"),
        Eps(),
        None,
    ),
    "range": (
        {"_class_name": "DDIMScheduler", "clip_sample_range": 2.5},
        BetaTable("linear"),
        Eps(),
        2.5,
    ),
    "zero snr": (
        {
            "_class_name": "DDIMScheduler",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
        },
        BetaTable("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True),
        V(),
        None,
    ),
    "cosine": (
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 50,
        },
        BetaTable("squaredcos_cap_v2", 50),
        Eps(),
        None,
    ),
    "shift": (
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        RectifiedFlow(3.0),
        Velocity(),
        None,
    ),
    "flow": (
        {
            "_class_name": "DPMSolverMultistepScheduler",
            "use_flow_sigmas": True,
            "flow_shift": 2.0,
            "prediction_type": "flow_prediction",
        },
        RectifiedFlow(2.0),
        Velocity(),
        None,
    ),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_all_of_a_schedule_comes_from_the_config(case):
    config, schedule, reads, clip = SCHEDULERS[case]
    read = imported_schedule(config, Family(), 16)
    assert (read.parameterisation, read.clip) == (reads, clip)
    if not isinstance(schedule, BetaTable):
        assert read.schedule == schedule and read.time.of == "sigma"
        return
    t = torch.tensor([1.0, 0.5, 0.02], dtype=torch.float64)
    torch.testing.assert_close(read.schedule.at(t).alpha, schedule.at(t).alpha)
    assert (read.time.scale, read.time.offset) == (schedule.levels, -1)


def test_a_table_that_only_diffusers_has_is_kept_number_by_number():
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "num_train_timesteps": 40}
    from diffusers import DDPMScheduler

    read, theirs = imported_schedule(config, Family(), 16), DDPMScheduler.from_config(config)
    t = (torch.arange(40, dtype=torch.float64) + 1) / 40
    torch.testing.assert_close(
        read.schedule.at(t).alpha ** 2, theirs.alphas_cumprod.double(), rtol=1e-5, atol=1e-7
    )


def test_a_dynamic_shift_is_that_of_the_size():
    """Flux's mu is affine in the number of tokens; exp(mu) is the shift."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    for tokens in (256, 1024, 4096):
        shift = imported_schedule(config, KNOWN["FluxPipeline"], tokens).schedule.shift
        assert shift == pytest.approx(torch.tensor(calculate_shift(tokens)).exp().item(), rel=1e-6)
    linear = imported_schedule({**config, "time_shift_type": "linear"}, KNOWN["FluxPipeline"], 1024)
    assert linear.schedule.shift == pytest.approx(calculate_shift(1024))


@pytest.mark.parametrize(
    "config, word",
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDMEuler"),
        ({"_class_name": "Nothing"}, "Nothing"),
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"_class_name": "DDPMScheduler", "thresholding": True}, "thresholding"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "x"}, "prediction_type"),
    ],
)
def test_a_scheduler_of_another_kind_is_a_sentence(config, word):
    with pytest.raises(ConfigError, match=word):
        imported_schedule(config, Family(), 16)


# --- folders of others --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddim") / "theirs"
    families.ddpm_pipeline("DDIM").save_pretrained(path)
    return path


def changed(folder, tmp_path, **changes):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, **changes}))
    return copy


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"unet": ["os", "system"]}, "os"),
        ({"unet": ["my_module", "Net"]}, "my_module"),
        ({"extra": ["pipeline_code", "Thing"]}, "pipeline_code"),
        ({"_class_name": ["pipeline", "Mine"]}, "code of its own"),
        ({"_class_name": "Mine"}, "Mine"),
        ({"unet": ["diffusers", "DDIMScheduler"]}, "DDIMScheduler"),
        ({"unet": ["diffusers", "os"]}, "os"),
        ({"id2label": ["os", "system"]}, "id2label"),
    ],
)
def test_a_folder_names_classes_of_diffusers_and_transformers_alone(
    folder, tmp_path, changes, word
):
    with pytest.raises((CheckpointError, ConfigError), match=word):
        Pipeline.from_diffusers(changed(folder, tmp_path, **changes))


def test_weights_are_read_strictly_and_never_from_a_pickle(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = changed(folder, tmp_path)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        Pipeline.from_diffusers(copy)
    torch.save(tensors, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match="pickle"):
        Pipeline.from_diffusers(copy)


def test_what_is_no_pipeline_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for source, word in (
        (tmp_path, "model_index.json"),
        ("nowhere", "OWNER/NAME"),
        ("nobody/nothing-of-this-name", "hub"),
        (tmp_path / "a.safetensors", "no file"),
        (torch.nn.Linear(1, 1), "DiffusionPipeline"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=word) as raised:
            Pipeline.from_diffusers(source)
        assert "\n" not in str(raised.value)


def test_a_pipeline_that_nobody_foresaw_is_a_file_of_ten_lines(tmp_path):
    """A class that halfstep does not know: the file says how it calls its network."""
    from diffusers import StableDiffusionPipeline

    class Unforeseen(StableDiffusionPipeline):
        pass

    known = families.stable_diffusion()
    theirs = Unforeseen(**known.components, requires_safety_checker=False)
    with pytest.raises(ConfigError, match="Unforeseen"):
        Pipeline.from_diffusers(theirs)
    file = tmp_path / "family.toml"
    file.write_text(
        'network = "unet"\nprompts = ["encoder_hidden_states", "-encoder_hidden_states"]\n'
        '[inputs]\nsample = "sample"\n[inputs.conditions]\nencoder_hidden_states = "encoder_hidden_states"\n'
    )
    noise = torch.randn(2, 4, 8, 8)
    expected = sampled(Pipeline.from_diffusers(known), "stable-diffusion", noise, 2.0)
    ours = Pipeline.from_diffusers(theirs, family=file)
    assert torch.equal(sampled(ours, "stable-diffusion", noise, 2.0), expected)
    file.write_text('netwrok = "unet"\n')
    with pytest.raises(ConfigError, match="network"):
        Pipeline.from_diffusers(theirs, family=file)


def test_another_size_is_that_of_the_latents_and_of_what_the_network_is_told():
    theirs = families.sdxl()
    ours = Pipeline.from_diffusers(theirs, size=(24, 16))
    assert ours.shape == (4, 12, 8) and ours.added["time_ids"].tolist() == [24, 16, 0, 0, 24, 16]
    assert ours.sample(1, steps=1).shape == (1, 3, 24, 16)
    for size in (15, (16, 17)):
        with pytest.raises(ConfigError, match="multiple of 2"):
            Pipeline.from_diffusers(theirs, size=size)
    with pytest.raises(ConfigError, match="size"):
        ours.at_size(32, 32)


def test_a_network_that_takes_its_scale_is_guided_by_one_call():
    """Flux-dev's embedded guidance, and a range of scales that a student may learn."""
    theirs = families.flux(guidance_embeds=True)
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_diffusers(theirs, size=16)
    assert ours.guidance_range == (1.0, 10.0)
    noise = torch.randn(2, *ours.shape)
    packed = type(theirs)._pack_latents(noise, 2, 4, 8, 8)
    with torch.no_grad():
        out = theirs(
            TEXTS,
            height=16,
            width=16,
            latents=packed,
            guidance_scale=3.5,
            num_inference_steps=2,
            output_type="latent",
        )
    expected = type(theirs)._unpack_latents(out.images, 16, 16, 2)
    samples = ours.sample(2, noise=noise, steps=2, guidance_scale=3.5, prompts=TEXTS, latents=True)
    assert (samples - expected).abs().max() / expected.abs().max() < 1e-5
    assert Pipeline.from_diffusers(theirs, size=16, guidance_range=(2, 4)).guidance_range == (2, 4)
    with pytest.raises(ConfigError, match="guidance_range"):
        Pipeline.from_diffusers(families.sd3(), guidance_range=(2, 4))


def test_a_single_file_is_read_with_the_configs_of_a_folder(tmp_path):
    """A file of weights under diffusers' own names: `from_single_file` reads it."""
    known = families.stable_diffusion()
    known.save_pretrained(tmp_path / "configs")
    with pytest.raises(ConfigError, match="config"):
        (tmp_path / "model.safetensors").write_bytes(b"")
        Pipeline.from_diffusers(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        Pipeline.from_diffusers(tmp_path / "model.safetensors", config=tmp_path / "configs")
    with pytest.raises(ConfigError, match="config"):
        Pipeline.from_diffusers(tmp_path / "configs", config=tmp_path / "configs")


# --- what the folders of others are like --------------------------------------------------------------


def close(ours, theirs, noise, scale=1.0):
    expected = own_samples("stable-diffusion", theirs, noise, 4, scale)
    samples = sampled(ours, "stable-diffusion", noise, scale)
    return (samples - expected).abs().max() / expected.abs().max()


def test_a_dynamic_shift_is_passed_as_the_pipeline_passes_it():
    """SD3's scheduler makes its own grid, whose end a static shift would bend too."""
    theirs = families.sd3(use_dynamic_shifting=True)
    theirs.set_progress_bar_config(disable=True)
    ours, noise = Pipeline.from_diffusers(theirs), torch.randn(2, 4, 8, 8)
    expected = own_samples("sd3", theirs, noise, 4, 2.0)
    error = (sampled(ours, "sd3", noise, 2.0) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5 and ours.scheduler.mu is not None


def test_what_a_pipeline_sets_in_its_scheduler_is_set_here(tmp_path):
    """StableDiffusionPipeline begins at steps_offset 1 and never clips, whatever its folder says."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    families.stable_diffusion().save_pretrained(tmp_path / "sd")
    odd = DDIMScheduler(**{**families.TABLE, "steps_offset": 0, "clip_sample": True})
    odd.save_pretrained(tmp_path / "sd" / "scheduler")
    ours = Pipeline.from_diffusers(tmp_path / "sd")
    with warnings.catch_warnings(action="ignore"):
        theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    assert ours.clip is None and close(ours, theirs, torch.randn(2, 4, 8, 8), 3.0) < 1e-5


def test_a_folder_in_half_precision_alone_is_read(tmp_path):
    theirs = families.stable_diffusion().to(torch.float16)
    theirs.save_pretrained(tmp_path / "half", variant="fp16")
    ours, noise = Pipeline.from_diffusers(tmp_path / "half"), torch.randn(2, 4, 8, 8)
    assert next(ours.denoiser.parameters()).dtype == torch.float32
    theirs = theirs.to(torch.float32)
    theirs.set_progress_bar_config(disable=True)
    assert close(ours, theirs, noise, 2.0) < 1e-5


def test_an_object_in_another_precision_samples_in_it():
    theirs = families.stable_diffusion().to(torch.bfloat16)
    ours = Pipeline.from_diffusers(theirs)
    samples = sampled(ours, "stable-diffusion", torch.randn(2, 4, 8, 8), 2.0)
    assert samples.dtype == torch.float32 and bool(samples.isfinite().all())


def test_a_flat_folder_is_read_as_diffusers_reads_it(folder, tmp_path):
    """As the DDPMs of 2022 lie on the hub: the network's files beside model_index.json."""
    import shutil

    flat = changed(folder, tmp_path)
    for part in ("unet", "scheduler"):
        for file in (flat / part).iterdir():
            shutil.move(file, flat / file.name)
        (flat / part).rmdir()
    samples = Pipeline.from_diffusers(flat).sample(2, steps=2)
    assert torch.equal(samples, Pipeline.from_diffusers(folder).sample(2, steps=2))


def test_a_folder_is_remembered_by_its_whole_path(tmp_path, monkeypatch):
    """Elsewhere a relative one would be another folder, or a name on the hub."""
    (tmp_path / "models").mkdir()
    families.stable_diffusion().save_pretrained(tmp_path / "models" / "sd")
    monkeypatch.chdir(tmp_path)
    Pipeline.from_diffusers("models/sd").save("ours")
    ours = Pipeline.load(tmp_path / "ours")
    assert ours.origin.source == str((tmp_path / "models" / "sd").resolve())
    monkeypatch.chdir(tmp_path / "models")
    assert ours.sample(1, steps=1, prompts=["a cat"]).shape[0] == 1


def test_learned_variances_leave_the_scheduler_that_reads_them():
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    assert imported_schedule(config, Family(), 16).published is None
    theirs = families.ddpm_pipeline(variance_type="learned_range")
    assert Pipeline.from_diffusers(theirs).sampler == "ddim"


def test_what_encode_prompt_returns_is_counted():
    theirs = families.stable_diffusion()
    family = Family(network="unet", prompts=("encoder_hidden_states",))
    with pytest.raises(ConfigError, match="2 values"):
        Pipeline.from_diffusers(theirs, family=family)


def test_classes_have_the_names_of_their_numbers():
    """A DiT's first name of each, and its null class behind them."""
    ours = Pipeline.from_diffusers(families.dit_pipeline())
    assert ours.class_names[0] == "class 0" and ours.class_names[999] == "class 999"
    assert len(ours.class_names) == ours.null == 1000
