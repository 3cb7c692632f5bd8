"""Tables of images: columns, damaged files, and rows without an image."""

import torch

from halfstep.data import load
from halfstep.data.latents.captions import captions_of
from halfstep.data.latents.image_stream import stream
from halfstep.data.sources import table_files
from halfstep.errors import ConfigError, DataError
from tests.support import data_forms as forms
from tests.support.refusals import refused

CONTENTS = [forms.png(image) for image in forms.some_pixels(6)]


def written(path, **columns):
    """A parquet file of plain columns, without features."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return str(path)


def test_plain_columns_are_found(tmp_path):
    cells = [{"bytes": content, "path": "x"} for content in CONTENTS]
    struct = load(written(tmp_path / "a.parquet", picture=cells, label=[0, 0, 1, 1, 2, 2]))
    plain = load(written(tmp_path / "b.parquet", jpg=CONTENTS, cls=list("bbaacc")))
    assert torch.equal(struct.values, plain.values) and struct.names == ()
    assert struct.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert plain.names == ("a", "b", "c") and plain.labels.tolist() == [1, 1, 0, 0, 2, 2]
    missing = load(written(tmp_path / "c.parquet", jpg=CONTENTS, label=[0, None, 1, 1, None, 0]))
    assert missing.labels.tolist() == [0, -1, 1, 1, -1, 0]
    assert load(written(tmp_path / "d.parquet", jpg=CONTENTS, id=[5] * 6)).labels is None


def test_columns_that_are_open_are_named_and_can_be_chosen(tmp_path):
    place = written(tmp_path / "a.parquet", left=CONTENTS, right=CONTENTS[::-1], note=["n"] * 6)
    with refused(DataError, "images left, right", f"{place}:image=left"):
        load(place)
    left, right = load(f"{place}:image=left"), load(f"{place}:image=right")
    assert torch.equal(left.values, right.values.flip(0)) and left.labels is None
    assert captions_of(stream(f"{place}:image=left")) is None
    assert captions_of(stream(f"{place}:image=left,text=note")) == [("n",)] * 6
    with refused(ConfigError, "no column 'up'", "left, right, note"):
        load(f"{place}:image=up")
    assert len(load(written(tmp_path / "b.parquet", image=CONTENTS, mask=CONTENTS))) == 6
    with refused(DataError, "no column of images", "id"):
        load(written(tmp_path / "c.parquet", id=[1, 2]))
    with refused(DataError, "label 1.5"):
        load(written(tmp_path / "d.parquet", image=CONTENTS, id=[1.5] * 6) + ":label=id")


def test_damaged_files_are_refused(tmp_path):
    good = tmp_path / "a.parquet"
    forms.table(CONTENTS).to_parquet(good)
    content = good.read_bytes()
    for cut in (content[: len(content) // 2], content[:-1], b"", b"PAR1PAR1"):
        good.write_bytes(cut)
        with refused(DataError, "cannot read", "a.parquet", "fetch it again"):
            load(str(good))
    arrow = forms.saved(tmp_path / "saved", CONTENTS) / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    with refused(DataError, "cannot read"):
        load(str(tmp_path / "saved"))


def test_a_row_reads_no_other_file_and_no_address(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(CONTENTS[0])
    (tmp_path / "data" / "own.png").write_bytes(CONTENTS[1])
    for path in ("../secret.png", str(tmp_path / "secret.png"), "https://example.com/a.png"):
        cells = [{"bytes": None, "path": path}, {"bytes": CONTENTS[0], "path": None}]
        place = written(tmp_path / "data" / "a.parquet", image=cells)
        with refused(DataError, "a.parquet[0] (its image is at", "--skip-bad"):
            load(place)
        assert len(load(place, skip_bad=True)) == 1
    cells = [{"bytes": None, "path": "own.png"}, {"bytes": CONTENTS[1], "path": None}]
    data = load(written(tmp_path / "data" / "a.parquet", image=cells))
    assert torch.equal(data.values[0], data.values[1])
    empty = [{"bytes": None, "path": None}, {"bytes": CONTENTS[1], "path": None}]
    with refused(DataError, "a.parquet[0] (no image)"):
        load(written(tmp_path / "data" / "a.parquet", image=empty))


def test_a_missing_library_is_a_sentence(tmp_path, monkeypatch):
    place = written(tmp_path / "a.parquet", image=CONTENTS)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with refused(ConfigError, "pip install 'halfstep[datasets]'"):
        load(place)


def test_a_row_group_beyond_memory_is_refused(tmp_path, monkeypatch):
    place = written(tmp_path / "a.parquet", image=CONTENTS)
    monkeypatch.setattr(table_files, "memory", lambda: 10)
    with refused(DataError, "row group 0", "row_group_size"):
        load(place)
