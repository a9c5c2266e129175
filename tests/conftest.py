"""What every test may rely on: no network, few threads, and the shared material only where it is there."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch and transformers are imported: xdist runs a process per core, and nothing may ask a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of third-party models and data beside the repository; the test is skipped without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("the folder ../shared is not here")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever takes the `shared` fixture can be deselected by its marker."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_shared")
