"""Imports point one way, and what is heavy or optional waits until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("kernels", "interp", "probes", "apps")

# kernels <- core <- analyses <- plots <- faces: a module imports nothing of ours from a higher level.
# The longest prefix of a module's name decides; a new package must be given its place here.
LEVELS = {
    "kernels": 0,
    "interp.errors": 1,
    "interp.runs": 1,
    "interp.shipped": 1,
    "interp.stats": 1,
    "interp.tables": 1,
    "interp.metrics": 2,
    "interp.tracing": 2,
    "interp.tasks": 2,
    "interp": 3,  # the public face itself, not what is below it
    "interp.attention_summary": 3,
    "interp.logit_lens": 3,
    "interp.next_token": 3,
    "interp.conformance": 3,
    "interp.conformance.__main__": 5,  # a command
    "interp.patching": 3,
    "interp.heads": 3,
    "interp.circuits": 3,
    "interp.knob": 3,
    "interp.directions": 3,
    "interp.discriminant": 3,
    "interp.projection": 3,
    "interp.skills": 3,
    "interp.pocket": 3,
    "probes": 3,
    "interp.plots": 4,
    "interp.cli": 5,
    "apps": 5,
}


def level(module: str) -> int:
    if module in LEVELS:
        return LEVELS[module]
    parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    known = [parent for parent in parents if parent in LEVELS and parent != "interp"]
    if not known:
        raise AssertionError(f"{module} has no level in {Path(__file__).name}")
    return LEVELS[known[0]]


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but not the body of a result's `plot`: what it draws with waits until it is asked to."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.FunctionDef) and child.name == "plot"):
            yield child
            yield from statements(child)


def imports(source: str, ours: frozenset[str]) -> set[str]:
    """Every module of ours that the source imports, at its top or inside a function."""
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in ours else str(node.module))
    return {name for name in found if name.split(".")[0] in PACKAGES}


def test_imports_point_one_way(root: Path) -> None:
    sources = dict(modules(root))
    against = [
        f"{name} imports {imported}"
        for name, path in sources.items()
        for imported in sorted(imports(path.read_text(encoding="utf-8"), frozenset(sources)))
        if level(imported) > level(name)
    ]
    assert len(sources) > 10
    assert against == []


def test_an_import_against_the_rule_is_seen() -> None:
    ours = frozenset({"interp", "interp.cli", "interp.cli.main", "interp.heads"})
    source = (
        "def f():\n    from interp.cli import main\n    from interp import heads, load\n    import torch\n"
        "class Result:\n    def plot(self):\n        from interp.plots import heat_map\n"
    )
    assert imports(source, ours) == {"interp.cli.main", "interp.heads", "interp"}
    assert level("interp.cli.main") > level("interp.heads") > level("interp.tracing.model") > level("kernels")
    with pytest.raises(AssertionError, match="no level"):
        level("interp.helpers")


def test_the_kernels_know_nothing_of_us(root: Path) -> None:
    for name, path in modules(root):
        if name.split(".")[0] == "kernels":
            known = imports(path.read_text(encoding="utf-8"), frozenset(dict(modules(root))))
            assert all(module.split(".")[0] == "kernels" for module in known), name


def loaded_by(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh interpreter has imported after `statement`."""
    script = f"import sys\n{statement}\nprint([n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stderr.strip().splitlines()[-1])


OPTIONAL = ("transformer_lens", "nnsight", "streamlit", "plotly", "sklearn", "accelerate", "wandb")
HEAVY = ("torch", "transformers", "numpy", "pandas", "scipy", "pyarrow")


def test_importing_interp_loads_no_backend_and_no_interface() -> None:
    assert loaded_by("import interp", OPTIONAL) == []


EVERY_HELP = """
import contextlib, io
from typer.main import get_command
from interp.cli.main import app, main

def paths(command, path=()):
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, (*path, name))

for path in paths(get_command(app)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        main([*path, "--help"])
    assert " ".join((*path, "[OPTIONS]")) in " ".join(shown.getvalue().split()), path
"""


def test_help_of_every_command_waits_for_nothing_heavy() -> None:
    assert loaded_by(EVERY_HELP, HEAVY + OPTIONAL) == []
