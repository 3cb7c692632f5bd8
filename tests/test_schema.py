"""What a file holds is held to one schema, and what is wrong is named: the key, and in one line."""

import json
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from halfstep import storage
from halfstep.errors import CheckpointError, ConfigError, DataError
from halfstep.schema import from_json, from_toml, literal


class Inner(TypedDict):
    low: float
    high: float


class Outer(TypedDict):
    name: str
    count: int
    fine: bool
    kind: Literal["a", "b"]
    of: list[Inner]
    pair: tuple[int, float]
    maybe: dict[str, int] | None
    rest: NotRequired[Any]


GOOD = {
    "name": "x", "count": 3, "fine": True, "kind": "a", "of": [{"low": 1, "high": 2.5}],
    "pair": [1, 2], "maybe": {"a": 1},
}  # fmt: skip
CASES = [
    ({"name": 3}, "name must be text"),
    ({"name": None}, "name must be text"),
    ({"count": 2.0}, "count must be a whole number"),
    ({"count": True}, "count must be"),
    ({"count": "3"}, "count must be"),
    ({"fine": 1}, "fine must be"),
    ({"kind": "c"}, "kind must be one of a, b"),
    ({"kind": ["a"]}, "kind must be"),
    ({"of": {}}, "of must be a list"),
    ({"of": [3]}, r"of\[0\] must be a table"),
    ({"of": [GOOD["of"][0], {"low": 1}]}, r"lacks of\[1\]\.high"),
    ({"of": [{"low": "1", "high": 2}]}, r"of\[0\]\.low must be a number"),
    ({"of": [{"low": True, "high": 2}]}, r"of\[0\]\.low must be"),
    ({"pair": [1]}, "pair must be a list of 2"),
    ({"pair": [1, "2"]}, r"pair\[1\] must be"),
    ({"pair": "12"}, "pair must be a list"),
    ({"maybe": {"a": "b"}}, r"maybe\.a must be"),
    ({"maybe": []}, "maybe must be a table"),
    ({"other": 1}, "'other' is no key"),
    ({"count": 10**30}, "count is a whole number of 100 bits"),
    ({"of": [{"low": 10**400, "high": 0}]}, r"of\[0\]\.low is a whole number of 1329 bits"),
    ({"rest": {"deep": [[-(10**19)]]}}, r"rest\.deep\[0\]\[0\] is a whole number of 64 bits"),
]


def changed(**values):
    return json.dumps({**GOOD, **values})


def test_what_is_right_is_read():
    assert from_json(json.dumps(GOOD), Outer, "f") == GOOD
    assert from_json("\ufeff" + json.dumps(GOOD), Outer, "f") == GOOD
    assert from_json(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), Outer, "f") == GOOD
    assert from_json(changed(maybe=None, rest=[{"any": None}]), Outer, "f")["maybe"] is None


@pytest.mark.parametrize("change, message", CASES)
def test_the_key_is_named(change, message):
    with pytest.raises(CheckpointError, match=f"^'f' is damaged: .*{message}") as caught:
        from_json(changed(**change), Outer, "'f'")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("key", ["name", "count", "of", "maybe"])
def test_a_missing_key_is_named(key):
    text = json.dumps({k: v for k, v in GOOD.items() if k != key})
    with pytest.raises(DataError, match=f"lacks {key}"):
        from_json(text, Outer, "f", error=DataError)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\x80\xff",
        b"\xff\xfe{\x00}\x00",
        b'{"name": "\xff"}',
        b'{"name": NaN}',
        b'{"count": -Infinity}',
        b'{"count": 1e999}',
        b'{"count": %s}' % (b"9" * 5000),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100 + b"]" * 100,
        b'{"rest": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"name": "a", "name": "b"}',
        b'{"of": [{"low": 1, "low": 2}]}',
    ],
    ids=range(19),
)
def test_what_is_no_such_text_is_a_sentence(text):
    with pytest.raises(CheckpointError, match="'f' is damaged: ") as caught:
        from_json(text, Outer, "'f'")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text",
    [b"\x80", b"a = ", b"a = nan", b"a = [inf]", b"a = 1e999", b"a = 1\na = 2", b"a = " + b"9" * 50,
     b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"a = " + b"[" * 100 + b"]" * 100],
    ids=range(10),
)  # fmt: skip
def test_toml_is_read_as_strictly(text):
    with pytest.raises(ConfigError, match="'f' is"):
        from_toml(text, dict[str, Any], "'f'", error=ConfigError)
    assert from_toml(b"\xef\xbb\xbfa = 1", dict[str, Any], "f") == {"a": 1}


@pytest.mark.parametrize("digits", ["0x" + "f" * 6000, "0b" + "1" * 24_000, "-9" + "0" * 25])
def test_toml_names_the_key_of_a_number_of_any_size(digits):
    with pytest.raises(
        ConfigError, match=r"^f is damaged: a\.b\[0\] is a whole number of \d+ bits$"
    ):
        from_toml(f"a.b = [{digits}]", dict[str, Any], "f", error=ConfigError)


@pytest.mark.parametrize(
    "text, value",
    [("64", 64), ("true", True), ("[1, 2]", [1, 2]), ("1e3", 1000.0), ("null", None), (64, 64),
     ("x", "x"), ("NaN", "NaN"), ("1e999", "1e999"), ("9" * 30, "9" * 30), ("9" * 9999, "9" * 9999),
     ("[" * 100_000, "[" * 100_000)],
    ids=range(12),
)  # fmt: skip
def test_what_was_typed_is_a_value_or_stays_text(text, value):
    actual = literal(text)
    assert actual == value and type(actual) is type(value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"a": 1, "a": 1}}]'])
def test_a_key_twice_is_refused(text):
    with pytest.raises(CheckpointError, match="'a' twice"):
        from_json(text, Any, "f")


# The checksum of a json.


def test_a_checksum_is_of_what_is_said_in_any_order(tmp_path):
    path, content = tmp_path / "a.json", {"b": [1, 2.5], "a": {"1": "é", "x": None}}
    storage.write_json(path, content)
    assert storage.read_json(path, dict) == content
    written = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(written.items())), ensure_ascii=False), "utf-8")
    assert storage.read_json(path, dict) == content


@pytest.mark.parametrize(
    "old, new", [("2.5", "2.6"), ("1,", "1.0,"), ('"x"', '"y"'), ("null", "0")]
)
def test_one_changed_sign_is_refused(tmp_path, old, new):
    path = tmp_path / "a.json"
    storage.write_json(path, {"b": [1, 2.5], "a": {"1": "é", "x": None}})
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=r"a\.json' is damaged: its checksum"):
        storage.read_json(path, dict)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 10**19, [[float("-inf")]]],
    ids=["nan", "inf", "huge", "in"],
)
def test_what_would_not_be_read_is_not_written(tmp_path, value):
    with pytest.raises(ConfigError, match=r"cannot be written: a.* number"):
        storage.write_json(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())


def test_another_format_is_named_before_its_keys(tmp_path):
    storage.write_json(tmp_path / "a.json", {"format": 2, "new": 3})
    with pytest.raises(CheckpointError, match="format 2 and this halfstep reads 1"):
        storage.read_json(tmp_path / "a.json", Outer, format=1)


def test_there_is_one_reader():
    """Nothing else parses JSON or TOML, but for what is about to be written, and processes' own words."""
    package = Path(storage.__file__).parent
    sources = {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob("*.py")}
    parse = {name for name, text in sources.items() if "json.load" in text or "tomllib." in text}
    words = {"training/distributed.py", "training/peers.py", "pipeline/to_diffusers/draw.py"}
    assert parse == {"schema.py", "models/__init__.py", "training/run_folder.py"} | words
