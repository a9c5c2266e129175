"""What is downloaded is what the library writes, and can be read back."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from apps.explorer.settings import samples_folder
from interp.errors import BadInput, UnreadableFile
from interp.heads.formats import FORMATS, read_mask
from interp.heads.mask import HeadMask
from interp.runs import load_run, save_run
from tests.apps.reading import said

export = pytest.importorskip("apps.explorer.views.export", reason="the explorer is an extra")


@pytest.fixture(scope="module")
def mask() -> HeadMask:
    return read_mask(samples_folder() / "retrieval" / "mask.json")


@pytest.mark.parametrize("form", FORMATS)
def test_a_mask_in_any_format_can_be_read_back(mask, form, tmp_path):
    kept = mask if FORMATS[form].kind != "kv" else mask.to_kv("max").top(1)
    data, losses = export.mask_file(kept, form)
    path = tmp_path / "mask"
    if form == "duo":
        zipfile.ZipFile(io.BytesIO(data)).extractall(path)
    else:
        path.write_bytes(data)
    again = read_mask(path, form, layers=4, heads=4 if FORMATS[form].kind == "kv" else 8)
    lost = {loss.field for loss in losses}
    if "scores" not in lost:
        np.testing.assert_allclose(again.scores, kept.scores)
    if not {"selected", "rule"} & lost and form in ("json", "safetensors"):
        assert again == kept


def test_a_downloaded_mask_can_be_uploaded(mask):
    for form, name in (("json", "mask.json"), ("safetensors", "MASK.SAFETENSORS"), ("npy", "scores.npy")):
        np.testing.assert_allclose(export.uploaded(name, export.mask_file(mask, form)[0]).scores, mask.scores)


def npy(kind, shape):
    """The head of a NumPy file that promises an array."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def safetensors_of(shape):
    """A file whose head promises more than there is."""
    head = json.dumps({"scores": {"dtype": "F64", "shape": shape, "data_offsets": [0, 8]}}).encode()
    return len(head).to_bytes(8, "little") + head + b"\0" * 8


@pytest.mark.parametrize(
    ("name", "content", "error", "sentence"),
    [
        ("mask.exe", b"MZ", BadInput, "no mask file"),
        ("../../mask.pkl", b"\x80\x04", BadInput, "no mask file"),
        ("mask.json", b" " * (20 * 2**20 + 1), BadInput, "more than a mask has"),
        ("mask.json", b"[" * 200_000, UnreadableFile, "."),
        ("mask.json", b'{"schema": "interp-head-mask", "version": 99}', UnreadableFile, "version"),
        ("mask.safetensors", b"\xff" * 64, UnreadableFile, "safetensors"),
        ("mask.npy", b"\x93NUMPY\x01\x00broken", UnreadableFile, "."),
        ("mask.npy", npy("<f8", (10**12, 8)), UnreadableFile, "allocate"),
        ("mask.npy", npy("|O", (2, 2)) + b"\x80\x04}.", UnreadableFile, "pickle"),
        ("mask.json", b'{"0-0": ' + b"9" * 6000 + b"}", UnreadableFile, "integer string"),
        ("mask.json", b'{"999999999-999999999": [0.5]}', UnreadableFile, "leaves out"),
        ("mask.json", b"", UnreadableFile, "not JSON"),
        ("mask.safetensors", safetensors_of([10**9, 10**9]), UnreadableFile, "safetensors"),
    ],
)
def test_an_upload_is_checked_for_size_type_and_content(name, content, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        export.uploaded(name, content)
    assert "/tmp" not in str(raised.value)


def test_downloads_follow_the_choice_of_run(draw):
    test = draw("export", export="samples/retrieval", model="none")
    labels = [button.proto.label for button in test.get("download_button")]
    forms = [f"result: {form}" for form in ("HTML", "PNG", "SVG", "JSON")]
    assert labels == ["Download the mask", "CSV", "Parquet", *forms]
    test.selectbox(key="format").select("duo").run()
    assert not test.error
    assert "Not kept" in "".join(caption.value for caption in test.caption)


@pytest.mark.parametrize("name", ["retrieval", "needles", "ioi-positions"])
def test_every_table_of_a_run_can_be_downloaded_as_csv_and_parquet(name, draw):
    folder = samples_folder() / name
    tables = export.tables(load_run(folder))
    assert tables[0] == "table"
    assert {f"{table}.parquet" for table in tables} == {file.name for file in folder.glob("*.parquet")}
    for table in tables:
        test = draw("export", export=f"samples/{name}", table=table, model="none")
        assert not test.exception
        assert not test.warning
        buttons = {button.proto.label: button for button in test.get("download_button")}
        frame = pd.read_parquet(folder / f"{table}.parquet")
        assert f"{len(frame):,} rows" in said(test)
        assert {"CSV", "Parquet"} <= set(buttons)
    test = draw("export", export=f"samples/{name}", table="../../run", model="none")
    assert not test.exception
    assert "There is no table" in test.warning[0].value


def test_without_a_browser_pictures_are_off_and_the_way_around_is_named(draw, monkeypatch):
    monkeypatch.setattr(export, "lacking_for_pictures", lambda: "PNG and SVG need something")
    test = draw("export", export="samples/retrieval", model="none")
    off = [button.proto.label for button in test.get("download_button") if button.proto.disabled]
    assert off == ["result: PNG", "result: SVG"]
    assert "the camera above a figure saves it as SVG" in said(test)


def test_a_run_of_tables_alone_offers_no_figure(draw, own):
    folder = own / "mine"
    frame = pd.DataFrame({"a": [1, 2]})
    save_run(folder, kind="somebody's", parameters={}, model={"name": "x"}, seed=0, frame=frame)
    test = draw("export", export="runs/mine", model="none")
    assert [button.proto.label for button in test.get("download_button")] == ["CSV", "Parquet"]
    assert "tables only" in said(test)
