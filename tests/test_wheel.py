"""An ordinary wheel carries the bundled model and works far from the tree it was built from."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(folder), str(root)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_bundled_model_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "interp/_data/pocket/model.safetensors" in names
    assert "interp/_data/pocket/tokenizer.json" in names
    assert "interp/py.typed" in names
    assert "kernels/backends/cpu.cpp" in names
    assert not [name for name in names if name.startswith(("tests/", "data/"))]


def test_an_installed_wheel_answers_outside_the_tree(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    paths = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    site = Path(paths.strip())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--no-deps",
            "--no-index",
            "--quiet",
            wheel,
        ],
        check=True,
    )
    # The dependencies come from the environment of this test; its own link to the tree is not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    where = subprocess.check_output([python, "-c", "import interp; print(interp.__file__)"], cwd=tmp_path, text=True)
    assert Path(where.strip()).is_relative_to(site)

    info = subprocess.check_output([tmp_path / "venv" / "bin" / "interp", "info", "pocket"], cwd=tmp_path, text=True)
    assert "layers" in info
    assert "resid_post" in info
