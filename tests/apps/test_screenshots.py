"""The pictures of the README are real, of the size that is said, and can be taken again."""

from __future__ import annotations

import struct

import pytest

from apps.explorer import screenshots
from interp.plots.export import lacking_for_pictures

BYTES = 200_000
SIZES = {"explorer.png": (1280, 800), "figure.png": (1350, 690)}


def size(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("name", SIZES)
def test_the_pictures_are_small_and_of_their_size(root, name):
    content = (root / "docs/images" / name).read_bytes()
    assert size(content) == SIZES[name]
    assert len(content) < BYTES


@pytest.mark.slow
def test_the_pictures_can_be_taken_again(tmp_path):
    pytest.importorskip("playwright.sync_api")
    if lacking := lacking_for_pictures():
        pytest.skip(lacking)
    screenshots.take(tmp_path / "images")
    assert {file.name: size(file.read_bytes()) for file in (tmp_path / "images").iterdir()} == SIZES
