"""Prompts of samples: typed or of a file, in turn."""

import pytest

from halfstep.errors import ConfigError
from halfstep.workflows.prompts import in_turn, PromptOptions


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
