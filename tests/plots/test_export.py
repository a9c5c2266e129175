"""A figure becomes a file of the format its name asks for, without a network, or a sentence says why not."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as Tree

import numpy as np
import plotly.io
import pytest

from interp.errors import BadInput, UnwritableOutput
from interp.plots import export
from interp.plots.export import figure_bytes, lacking_for_pictures, save_figure
from interp.plots.heads import head_map

pictures = pytest.mark.skipif(bool(lacking_for_pictures()), reason="no Chrome or Chromium here")


@pytest.fixture(scope="module")
def figure():
    return head_map(np.arange(8.0).reshape(2, 4), "scores of <b>somebody</b>")


def test_html_holds_all_it_needs(figure, tmp_path):
    page = save_figure(figure, tmp_path / "figure.html").read_text()
    assert "<script src=" not in page
    assert len(page) > 2_000_000  # plotly itself
    assert "scores of" in page


def test_json_is_read_back_as_the_same_figure(figure, tmp_path):
    save_figure(figure, tmp_path / "figure.json")
    again = plotly.io.read_json(tmp_path / "figure.json")
    assert json.loads(again.to_json()) == json.loads(figure.to_json())


@pictures
def test_a_png_has_the_size_asked_for(figure, tmp_path):
    content = save_figure(figure, tmp_path / "figure.PNG", width=400, height=300, scale=2).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (800, 600)


@pictures
def test_an_svg_is_well_formed_and_says_what_the_figure_does(figure, tmp_path):
    tree = Tree.fromstring(save_figure(figure, tmp_path / "figure.svg").read_text())
    assert tree.tag.endswith("svg")
    assert {"head", "layer"} <= {text.strip() for text in tree.itertext()}


@pytest.mark.parametrize("name", ["figure.jpg", "figure", "figure.svg.exe"])
def test_a_name_of_another_format_is_refused_with_those_there_are(figure, tmp_path, name):
    with pytest.raises(BadInput, match=r"valid: \.html, \.json, \.png, \.svg"):
        save_figure(figure, tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_picture_without_a_size_is_refused(figure):
    if lacking_for_pictures():
        pytest.skip("no Chrome or Chromium here")
    with pytest.raises(BadInput, match="width -3"):
        figure_bytes(figure, ".png", width=-3)


def test_without_a_browser_a_sentence_says_what_to_do_and_html_is_still_written(figure, tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda **_: None)
    with pytest.raises(UnwritableOutput, match=r"Chrome or Chromium, and none was found.*\.html"):
        save_figure(figure, tmp_path / "figure.png")
    save_figure(figure, tmp_path / "figure.html")
    monkeypatch.setattr(export, "find_spec", lambda _name: None)
    with pytest.raises(UnwritableOutput, match=r"interp-workbench\[explorer\]"):
        save_figure(figure, tmp_path / "figure.svg")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.html"]


def test_a_browser_that_is_none_is_a_sentence(figure, monkeypatch, tmp_path):
    pytest.importorskip("kaleido")
    broken = tmp_path / "chrome"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(broken))
    with pytest.raises(UnwritableOutput, match="did not draw the PNG"):
        figure_bytes(figure, ".png")


def test_a_folder_that_cannot_be_written_is_refused(figure, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        save_figure(figure, tmp_path / "file" / "figure.json")
