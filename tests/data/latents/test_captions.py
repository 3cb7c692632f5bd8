"""Captions of a folder's images: the table and the texts beside, ugly names, refusals by sentence."""

import json
import re
import unicodedata

import pytest

from halfstep.data.latents.captions import read_captions
from halfstep.errors import DataError

NAMES = ["sub/deep/a b.png", "sub/c.d.jpeg", "äé 猫.png", "a.png"]
"""Nested, with spaces, with two dots, not ASCII; in no order."""


def images(folder, names=NAMES):
    """Their paths; the reader of captions opens none of them."""
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def line(name, value, key="text", **more):
    return json.dumps({"file_name": name, key: value, **more}, ensure_ascii=False)


def table(folder, *lines, end="\n", head=b""):
    text = "".join(line + end for line in lines)
    (folder / "metadata.jsonl").write_bytes(head + text.encode())


def beside(folder, **captions):
    for name, text in captions.items():
        (folder / f"{name}.txt").write_bytes(text.encode())


def refused(folder, files, words):
    with pytest.raises(DataError) as caught:
        read_captions(folder, files)
    message = str(caught.value).replace(f"{folder}", "FOLDER")
    assert words in message, message


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("head", [b"", "\ufeff".encode()], ids=["plain", "BOM"])
def test_a_table(tmp_path, end, head):
    """Any order, several lines or a list for one image, either key, other columns, blank lines."""
    files = images(tmp_path)
    table(
        tmp_path,
        line("a.png", "first", width=3),
        line("äé 猫.png", "eine Katze, 猫", "caption"),
        "",
        line("sub/c.d.jpeg", ["two", " three 🐈 "]),
        line("./sub//deep/a b.png", " space around\t"),
        line("a.png", "second"),
        line("a.png", ["third"], "caption"),
        end=end,
        head=head,
    )
    assert read_captions(tmp_path, files) == [
        ("space around",),
        ("two", "three 🐈"),
        ("eine Katze, 猫",),
        ("first", "second", "third"),
    ]


def test_the_order_is_that_of_the_files(tmp_path):
    files = images(tmp_path, ["b.png", "a.png", "c.png"])
    table(tmp_path, *(line(f"{name}.png", name) for name in "abc"))
    assert read_captions(tmp_path, files) == [("b",), ("a",), ("c",)]


def test_only_line_ends_end_a_line(tmp_path):
    files = images(tmp_path, ["a.png"])
    table(tmp_path, line("a.png", "one\u2028two\x85three"))
    assert read_captions(tmp_path, files) == [("one\u2028two\x85three",)]
    (tmp_path / "metadata.jsonl").unlink()
    beside(tmp_path, a="one\u2028two\x0cthree\nfour")
    assert read_captions(tmp_path, files) == [("one\u2028two\x0cthree", "four")]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_either_way(tmp_path, forms):
    """Some systems take `é` in a file's name apart into `e` and an accent."""
    on_disk, in_table = (unicodedata.normalize(form, "é.png") for form in forms)
    assert on_disk != in_table
    files = images(tmp_path, [on_disk])
    table(tmp_path, line(in_table, "an accent"))
    assert read_captions(tmp_path, files) == [("an accent",)]


@pytest.mark.parametrize(
    "bad, words",
    [
        (
            "{",
            "damaged: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ('{"file_name": NaN}', "damaged: NaN is no number"),
        (
            '{"file_name": "a.png", "file_name": "b.png", "text": "a"}',
            "damaged: it says 'file_name' twice",
        ),
        ("[" * 100_000, "damaged: it is nested deeper than 64 lists"),
        ('{"text": ' + "9" * 30 + "}", "damaged: text is a whole number of 100 bits"),
        ("[1]", "names no image: LIKE"),
        ('{"text": "a"}', "names no image: LIKE"),
        ('{"file_name": 3, "text": "a"}', "names no image: LIKE"),
        ('{"file_name": "a.png"}', "no text: LIKE"),
        ('{"file_name": "a.png", "text": "a", "caption": "b"}', "text and caption: LIKE"),
        ('{"file_name": "a.png", "text": " "}', "an empty caption: write one, or remove it"),
        ('{"file_name": "a.png", "text": ["b", ""]}', "an empty caption: write one, or remove it"),
        (
            r'{"file_name": "a.png", "text": "cat \ud83d"}',
            r"a caption with an unpaired surrogate (\ud800): correct it",
        ),
        (
            '{"file_name": "a.png", "text": []}',
            "an empty list of captions: write one, or remove the line",
        ),
        (
            '{"file_name": "a.png", "text": null}',
            "the caption None, which is no text: write a text",
        ),
        (
            '{"file_name": "a.png", "caption": ["b", 3]}',
            "the caption 3, which is no text: write a text",
        ),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, bad, words):
    files = images(tmp_path, ["a.png"])
    table(tmp_path, line("a.png", "good"), "", bad, line("a.png", "good"))
    words = words.replace("LIKE", 'write {"file_name": "a.png", "text": "a cat"}')
    words += "; mend or remove the line" * words.startswith("damaged")
    verb = "is " if words.startswith("damaged") else "" if words.startswith("names") else "has "
    refused(tmp_path, files, f"line 3 of FOLDER/metadata.jsonl {verb}{words}")


def test_images_that_the_table_leaves_out(tmp_path):
    files = images(tmp_path, [f"sub/{k}.png" for k in range(9)])
    table(tmp_path, line("sub/3.png", "a"), line("sub/1.png", "b"))
    refused(
        tmp_path,
        files,
        "7 of 9 images in FOLDER have no caption: sub/0.png, sub/2.png, sub/4.png, sub/5.png, "
        "sub/6.png and 2 more; add them to metadata.jsonl",
    )
    table(tmp_path, *(line(f"sub/{k}.png", "a") for k in range(4)))
    refused(
        tmp_path,
        files,
        "5 of 9 images in FOLDER have no caption: sub/4.png, sub/5.png, sub/6.png, sub/7.png, "
        "sub/8.png; add them to metadata.jsonl",
    )
    table(tmp_path, *(line(f"sub/{k}.png", "a") for k in range(8)))
    refused(
        tmp_path,
        files,
        "1 of 9 images in FOLDER have no caption: sub/8.png; add them to metadata.jsonl",
    )


@pytest.mark.parametrize("strange", ["b.png", "sub/a.png", "../a.png", "/a.png", "A.png", "a.png "])
def test_captions_of_images_that_are_not_there(tmp_path, strange):
    files = images(tmp_path, ["a.png"])
    table(tmp_path, line("a.png", "a"), line(strange, "b"), line(strange, "c"))
    refused(
        tmp_path,
        files,
        f"FOLDER/metadata.jsonl has captions for 1 missing images: {strange};",
    )


# -- texts beside ----------------------------------------------------------------------------------


def test_texts_beside(tmp_path):
    """Any order, several lines, BOM, CRLF, no last line end; notes where no images lie do not count."""
    files = images(tmp_path, [*NAMES[:3], "sub/e"])
    (tmp_path / "sub/deep/a b.txt").write_bytes("\ufeffone \r\n\r\n two\r\n".encode())
    (tmp_path / "sub/c.d.txt").write_bytes(b"three")
    (tmp_path / "sub/e.txt").write_bytes(b"\n\nfour\n")
    (tmp_path / "äé 猫.txt").write_bytes("fünf 猫\n".encode())
    (tmp_path / "sub/.hidden.txt").write_bytes(b"\xff")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("not a caption")
    assert read_captions(tmp_path, files) == [("one", "two"), ("three",), ("fünf 猫",), ("four",)]


def test_images_without_a_text_beside(tmp_path):
    files = images(tmp_path, [f"{k}.png" for k in range(8)])
    beside(tmp_path, **{"2": "a"})
    refused(
        tmp_path,
        files,
        "7 of 8 images in FOLDER have no caption: 0.png, 1.png, 3.png, 4.png, 5.png and 2 more; "
        "write a .txt beside each",
    )


def test_texts_without_an_image(tmp_path):
    files = images(tmp_path, ["a.png", "sub/a.png"])
    beside(tmp_path, a="a", readme="b")
    (tmp_path / "sub/b.txt").write_text("b")
    refused(
        tmp_path,
        files,
        "2 files of captions in FOLDER have no image: readme.txt, sub/b.txt; remove them, or name "
        "each after its image",
    )


def test_empty_texts(tmp_path):
    files = images(tmp_path, ["a.png", "b.png", "c.png"])
    beside(tmp_path, a="", b="b", c=" \r\n\t\n")
    refused(
        tmp_path,
        files,
        "2 files of captions in FOLDER are empty: a.txt, c.txt; write a caption into each",
    )


def test_two_images_of_one_text(tmp_path):
    files = images(tmp_path, ["a.jpg", "a.png"])
    beside(tmp_path, a="a")
    refused(
        tmp_path,
        files,
        "the captions of a.jpg and of a.png would be the same file: rename one, or write "
        "metadata.jsonl",
    )


# -- either ----------------------------------------------------------------------------------------


def test_both_at_once(tmp_path):
    files = images(tmp_path, ["a.png", "b.png"])
    table(tmp_path, line("a.png", "a"), line("b.png", "b"))
    beside(tmp_path, readme="beside no image")
    assert read_captions(tmp_path, files) == [("a",), ("b",)]
    beside(tmp_path, b="b")
    refused(tmp_path, files, "FOLDER has captions twice, in metadata.jsonl and in b.txt")


def test_none_at_all(tmp_path):
    files = images(tmp_path)
    beside(tmp_path, readme="beside no image")
    refused(
        tmp_path,
        files,
        'there are no captions in FOLDER: write metadata.jsonl with a line {"file_name": "a.png", '
        '"text": "a cat"} for each image, or a .txt beside each',
    )


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_what_is_not_utf8(tmp_path, name):
    files = images(tmp_path, ["a.png"])
    (tmp_path / name).write_bytes(b"gr\xfcn\n")
    refused(tmp_path, files, f"FOLDER/{name} is not UTF-8 (byte 2): save it as UTF-8")


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_what_cannot_be_read(tmp_path, name):
    files = images(tmp_path, ["a.png"])
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"^cannot read .*{re.escape(name)}: Is a directory$"):
        read_captions(tmp_path, files)
