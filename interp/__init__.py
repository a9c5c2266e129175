"""A mechanistic-interpretability workbench: read, edit and measure any Hugging Face language model.

    import interp

    model = interp.load("pocket")                              # bundled | local folder | hub id
    trace = model.run("The capital of", read="resid_post")     # only what you ask for is kept
    trace = model.run("The capital of", edits=[interp.zero("z.2.5")])

Names are imported when they are first used, so `import interp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load": "interp.tracing.loading",
    "wrap": "interp.tracing.loading",
    "Model": "interp.tracing.model",
    "Trace": "interp.tracing.trace",
    "RowFold": "interp.tracing.plan",
    "Site": "interp.tracing.sites",
    "Edit": "interp.tracing.edits",
    "zero": "interp.tracing.edits",
    "scale": "interp.tracing.edits",
    "mean": "interp.tracing.edits",
    "resample": "interp.tracing.edits",
    "patch": "interp.tracing.edits",
    "add": "interp.tracing.edits",
    "set_coordinate": "interp.tracing.edits",
    "project_out": "interp.tracing.edits",
    "swap_subspace": "interp.tracing.edits",
    "attend": "interp.tracing.edits",
    "save_edits": "interp.tracing.edit_files",
    "load_edits": "interp.tracing.edit_files",
    "PromptSet": "interp.tasks.prompts",
    "HeadMask": "interp.heads.mask",
    "sweep": "interp.patching.sweep",
    "activation_patching": "interp.patching.activation",
    "attribution_patching": "interp.patching.attribution",
    "path_patching": "interp.patching.path",
    "Run": "interp.runs",
    "samples_folder": "interp.shipped",
}
__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from interp.heads.mask import HeadMask
    from interp.patching.activation import activation_patching
    from interp.patching.attribution import attribution_patching
    from interp.patching.path import path_patching
    from interp.patching.sweep import sweep
    from interp.runs import Run
    from interp.shipped import samples_folder
    from interp.tasks.prompts import PromptSet
    from interp.tracing.edit_files import load_edits, save_edits
    from interp.tracing.edits import (
        Edit,
        add,
        attend,
        mean,
        patch,
        project_out,
        resample,
        scale,
        set_coordinate,
        swap_subspace,
        zero,
    )
    from interp.tracing.loading import load, wrap
    from interp.tracing.model import Model
    from interp.tracing.plan import RowFold
    from interp.tracing.sites import Site
    from interp.tracing.trace import Trace


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
