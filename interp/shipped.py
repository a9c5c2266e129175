"""Where the files are that ship with the workbench: the bundled models, the word lists, sample runs."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder() -> Path:
    """The folder of shipped files: `data/` in a checkout, `interp/_data/` in an installed wheel.

    Raises FileNotFoundError when neither is there (a broken installation).
    """
    for folder in (PACKAGE / "_data", PACKAGE.parent / "data"):
        if (folder / "vocabulary.json").is_file():
            return folder
    raise FileNotFoundError(f"no shipped data beside {PACKAGE}: the installation is incomplete, reinstall it")


def samples_folder() -> Path:
    """The folder of sample runs, one of every kind: what the explorer shows, and results load from.

    For example `AstStudy.load(interp.samples_folder() / "ast")`. Raises FileNotFoundError as `data_folder`.
    """
    return data_folder() / "samples"
