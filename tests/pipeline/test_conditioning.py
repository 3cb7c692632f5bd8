"""Named tensors of a pipeline: the samples' defaults, the null of guidance, saved, and part of identities."""

from dataclasses import replace

import pytest
import torch

from halfstep.batch import Cond
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.cost import multiply_adds
from halfstep.evaluation.sample_cache import identity
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import condition, defaults_of, differing, digest_of_defaults
from halfstep.pipeline.torch_export import conditions_of, export_program, run_program
from halfstep.rng import sample_noise
from tests.support.conditions import named_pipeline, POOLED, SIZES, TOKENS, Words

NET = "tests.support.conditions:reading"


def test_named_tensors_of_samples_are_those_of_the_empty_text_or_of_their_prompts():
    pipe, empty = named_pipeline(), Words().conditions([""])
    silent = condition(pipe, 3)
    assert list(silent.added) == ["pooled_projections", "encoder_attention_mask", "time_ids"]
    assert torch.equal(silent.encoder_hidden_states, empty.encoder_hidden_states.expand(3, -1, -1))
    assert torch.equal(silent.added["pooled_projections"][2], empty.added["pooled_projections"][0])
    said, expected = condition(pipe, 2, prompts=["a", "bc"]), Words().conditions(["a", "bc"])
    for name, value in expected.added.items():
        assert torch.equal(said.added[name], value) and said.added[name].dtype == value.dtype
    assert torch.equal(said.encoder_hidden_states, expected.encoder_hidden_states)
    assert torch.equal(said.added["time_ids"], SIZES.expand(2, -1))


def test_named_tensors_are_overridden_one_row_a_sample_or_one_for_all():
    pipe, sizes = named_pipeline(), torch.tensor([[4, 4, 0], [8, 2, 1]])  # whole numbers for floats
    each = condition(pipe, 2, prompts=["a", "b"], added={"time_ids": sizes}).added["time_ids"]
    assert torch.equal(each, sizes.float())
    every = condition(pipe, 2, added={"time_ids": sizes[:1]}).added["time_ids"]
    assert torch.equal(every, sizes[:1].float().expand(2, -1))
    pooled = torch.ones(2, POOLED)
    cond = condition(pipe, 2, prompts=["a", "b"], added={"pooled_projections": pooled})
    assert torch.equal(cond.added["pooled_projections"], pooled)
    assert cond.added["encoder_attention_mask"].sum() == 4  # of the prompts
    one = pipe.sample(1, prompts=["a"], added={"time_ids": sizes[:1]})
    assert not torch.equal(one, pipe.sample(1, prompts=["a"]))


@pytest.mark.parametrize(
    "added, words",
    [
        ({"time_id": SIZES[None]}, "time_id.*perhaps you meant 'time_ids'"),
        ({"time_ids": SIZES}, r"time_ids of shape \[2, 3\] or \[1, 3\]"),
        ({"time_ids": SIZES.expand(3, -1)}, "time_ids"),
        ({"encoder_attention_mask": torch.ones(2, TOKENS)}, "int64"),
        ({"time_ids": SIZES[None] / 0}, "nan"),
    ],
)
def test_named_tensors_that_do_not_fit_are_refused(added, words):
    with pytest.raises(ConfigError, match=words):
        named_pipeline().sample(2, added=added)


def test_a_pipeline_without_named_tensors_takes_none():
    pipe = replace(named_pipeline(), added={})
    with pytest.raises(ConfigError, match="leave added out"):
        pipe.sample(1, added={"time_ids": SIZES[None]})


@pytest.mark.parametrize(
    "added, words",
    [
        ({"label": SIZES}, "label is no name"),
        ({"time_ids": [8, 8, 0]}, "time_ids is a list"),
        ({"time_ids": SIZES / 0}, "time_ids of added"),
    ],
)
def test_named_tensors_that_a_pipeline_cannot_have(added, words):
    with pytest.raises(ConfigError, match=words):
        replace(named_pipeline(), added=added)


def test_the_null_condition_has_them_all_in_one_row():
    pipe, empty = named_pipeline(), Words().conditions([""])
    null = pipe.unconditional
    assert torch.equal(null.encoder_hidden_states, empty.encoder_hidden_states)
    assert torch.equal(null.added["encoder_attention_mask"], torch.tensor([[1, 0, 0, 0]]))
    assert "time_ids" not in null.added and null.label is None  # guidance keeps sizes
    assert replace(pipe, added={}).unconditional is pipe.empty
    assert replace(pipe, class_names=("a",), null=1).unconditional.label.tolist() == [1]


@torch.no_grad()
def test_guidance_leads_away_from_the_empty_text_with_its_named_tensors():
    pipe, said = named_pipeline(), Words().conditions(["ab"])
    net = pipe.denoiser.net
    pipe.sample(1, prompts=["ab"], guidance_scale=3.0)
    both = net.cond
    for name, value in Words().conditions([""]).added.items():
        assert torch.equal(both.added[name], torch.cat([said.added[name], value]))
    assert torch.equal(both.added["time_ids"], SIZES.expand(2, -1))


def test_they_are_saved_with_their_dtypes_and_decide_identities(tmp_path):
    pipe = named_pipeline()
    pipe.save(tmp_path, dtype=torch.float16)
    again = Pipeline.load(tmp_path, net=NET)
    assert again.added.keys() == pipe.added.keys() and torch.equal(again.empty, pipe.empty)
    for name, value in pipe.added.items():
        assert torch.equal(again.added[name], value) and again.added[name].dtype == value.dtype
    other = replace(pipe, added={**pipe.added, "time_ids": SIZES + 1})
    renamed = replace(
        pipe, added={k.replace("time_ids", "sizes"): v for k, v in pipe.added.items()}
    )
    assert len({identity(p) for p in (pipe, other, renamed, replace(pipe, added={}))}) == 4
    assert digest_of_defaults(replace(pipe, empty=None, added={})) is None


def test_an_encoder_with_another_pooled_text_is_refused_by_name():
    pipe = replace(named_pipeline(), texts=None)
    assert pipe.with_texts(Words()).texts == Words()
    with pytest.raises(ConfigError, match="pooled_projections"):
        pipe.with_texts(Words(turn=1.1))


def test_differences_of_the_empty_text_are_named():
    pipe, empty = named_pipeline(), Words().conditions([""])
    assert differing(empty, pipe) == []
    rounded = Cond(
        encoder_hidden_states=empty.encoder_hidden_states.half(),
        added={**empty.added, "pooled_projections": empty.added["pooled_projections"].half()},
    )
    assert differing(rounded, pipe) == []
    mask = {**empty.added, "encoder_attention_mask": torch.tensor([[1, 1, 0, 0]])}
    assert differing(replace(empty, added=mask), pipe) == ["encoder_attention_mask"]
    assert differing(replace(empty, added={}), pipe) == []  # what is not given is not compared
    assert differing(Cond(added=empty.added), pipe) == ["encoder_hidden_states"]
    assert defaults_of(empty)["added"]["pooled_projections"].shape == (POOLED,)


def test_costs_are_those_of_a_call_with_named_tensors():
    pipe = named_pipeline()
    assert multiply_adds(pipe) >= 0 and list(pipe.denoiser.net.cond.added) == list(pipe.added)


@pytest.mark.slow
def test_programs_take_named_tensors():
    pipe = named_pipeline()
    program, noise = export_program(pipe, 2), sample_noise(0, range(3), (2,))
    names = "encoder_hidden_states", *pipe.added
    assert program.inputs[2:] == conditions_of(pipe) == names
    said = condition(pipe, 3, prompts=["a", "b", "cd"])
    samples = run_program(program, noise, [said.named()[name] for name in names])
    torch.testing.assert_close(samples, pipe.sample(3, prompts=["a", "b", "cd"]))


# -- negative prompts ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("negative", ["xy", ["x", "yz", "xyz"]])
def test_guidance_leads_away_from_negative_prompts(negative):
    """Each sample alone is led away from its own, in batches as at once."""
    pipe, prompts = named_pipeline(), ["a", "bc", "def"]
    options = {"guidance_scale": 3.0, "prompts": prompts, "negative_prompts": negative}
    samples = pipe.sample(3, **options)
    torch.testing.assert_close(pipe.sample(3, batch=2, **options), samples)
    for k, text in enumerate([negative] * 3 if isinstance(negative, str) else negative):
        null = Words().conditions([text])
        alone = replace(
            pipe, empty=null.encoder_hidden_states[0], texts=None,
            added={**pipe.added, **{name: v[0] for name, v in null.added.items()}},
        )  # fmt: skip
        said = Words().conditions([prompts[k]])
        expected = alone.sample(
            1, first=k, guidance_scale=3.0, encoder_hidden_states=said.encoder_hidden_states,
            added=said.added,
        )  # fmt: skip
        torch.testing.assert_close(samples[k : k + 1], expected)
    assert not torch.allclose(samples, pipe.sample(3, prompts=prompts, guidance_scale=3.0))


def test_a_negative_prompt_that_is_empty_changes_nothing():
    pipe = named_pipeline()
    options = {"prompts": "ab", "guidance_scale": 2.0}
    plain = pipe.sample(2, **options)
    assert torch.equal(pipe.sample(2, negative_prompts="", **options), plain)
    assert torch.equal(pipe.sample(2, **{**options, "prompts": ["ab", "ab"]}), plain)


def test_guidance_keeps_the_sizes_of_samples():
    pipe, sizes = named_pipeline(), torch.tensor([[16.0, 0.0, 8.0]])
    for negative in (None, "no"):
        pipe.sample(
            1, prompts="a", guidance_scale=2.0, added={"time_ids": sizes}, negative_prompts=negative
        )
        assert torch.equal(pipe.denoiser.net.cond.added["time_ids"], sizes.expand(2, -1))


@pytest.mark.parametrize(
    "changes, options, words",
    [
        ({}, {}, "guidance is off"),
        ({"guidance_range": (1.0, 4.0)}, {"guidance_scale": 2.0}, "as an input"),
        ({}, {"guidance_scale": 2.0, "negative_prompts": ["a", "b", "c"]}, "one negative prompt, or 2"),
        ({"empty": None, "added": {}, "null": 0}, {"guidance_scale": 2.0}, "reads no texts"),
        ({"texts": None}, {"guidance_scale": 2.0}, "--text FOLDER"),
    ],
)  # fmt: skip
def test_negative_prompts_that_change_nothing_are_refused(changes, options, words):
    pipe = replace(named_pipeline(), **changes)
    with pytest.raises(ConfigError, match=words):
        pipe.sample(2, **{"negative_prompts": "no", **options})


def test_encoding_is_guided_away_from_negative_prompts():
    pipe, x = named_pipeline(), torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    options = {"prompts": ["a", "bc"], "guidance_scale": 2.0}
    plain, led = pipe.encode(x, **options), pipe.encode(x, negative_prompts="no", **options)
    assert not torch.allclose(plain, led)
    assert torch.equal(pipe.encode(x, negative_prompts=["", ""], **options), plain)
