"""Prompts of samples: typed or of a file, in turn."""

import gc
from weakref import ref

import pytest
import torch

from halfstep.errors import ConfigError
from halfstep.progress import SILENT
from halfstep.training.distributed import Processes
from halfstep.workflows.prompts import encoded, in_turn, PromptOptions
from halfstep.workflows.sample import _job, SampleConfig
from tests.support.conditions import named_pipeline, Words


def test_lines_of_a_file_are_prompts_and_blank_ones_are_left_out(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat \r\n\n  a zebra\u2028here\n".encode())
    options = PromptOptions(prompts=path, negative_prompt=("blurred", ""))
    assert options.texts == ("a cat", "a zebra\u2028here") and options.negative == ("blurred", "")
    assert in_turn(options.texts, [0, 1, 2, 5]) == [*options.texts, *options.texts]
    assert PromptOptions().texts == () and in_turn((), [0]) is None


@pytest.mark.parametrize(
    "content, more, words",
    [
        (b"a", {"prompt": ("a",)}, "--prompt and --prompts"),
        (b" \n\n", {}, "no prompt"),
        (b"\xff", {}, "UTF-8"),
        (None, {}, "cannot read"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(content, more, words, tmp_path):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        PromptOptions(prompts=path, **more).texts  # noqa: B018  # a property that reads


def test_labels_beside_prompts_are_refused():
    PromptOptions(prompt=("a",)).refuse_labels([])
    with pytest.raises(ConfigError, match="--labels or --prompt"):
        PromptOptions(prompt=("a",)).refuse_labels([1])


# -- encoded once, then free -----------------------------------------------------------------------


class Counting(Words):
    """Keeps the texts that it encoded."""

    def conditions(self, texts):
        self.seen = [*getattr(self, "seen", ()), *texts]
        return super().conditions(texts)


def test_each_text_is_encoded_once(monkeypatch):
    monkeypatch.setattr("halfstep.workflows.prompts.AT_ONCE", 2)
    pipe, texts = named_pipeline(texts=Counting()), ["a", "bc", "a", "def", "bc"]
    cond, expected = encoded(pipe, texts), Words().conditions(texts)
    assert pipe.texts.seen == ["a", "bc", "def"]
    for name, value in expected.named().items():
        assert torch.equal(cond.named()[name], value)
    assert encoded(pipe, None) is None and encoded(pipe, []) is None


def test_the_text_encoder_leaves_memory_before_sampling(tmp_path):
    pipe, options = named_pipeline(), {"guidance_scale": 2.0}
    texts = PromptOptions(prompt=("a", "bc"), negative_prompt=("no",))
    config = SampleConfig(out=tmp_path, n=3, npz=True, texts=texts, **options)
    expected = pipe.sample(3, prompts=["a", "bc", "a"], negative_prompts="no", **options)
    encoder, job = ref(pipe.texts), _job(pipe, config, Processes("cpu"), SILENT)
    del pipe
    gc.collect()
    assert encoder() is None and job.pipeline.texts is None
    assert torch.equal(job.run().samples, expected)


def test_negative_prompts_without_guidance_are_refused_before_sampling(tmp_path):
    config = SampleConfig(out=tmp_path, texts=PromptOptions(negative_prompt=("no",)))
    with pytest.raises(ConfigError, match="guidance is off"):
        _job(named_pipeline(), config, Processes("cpu"), SILENT)
