"""The context-sensitivity knob: the direction that decides between context and prior knowledge, found and turned.

    from interp.knob import fit_knob, search_layers
    result = fit_knob(model, items, form=PromptForm(wording="pocket"))
    model.generate(prompt, edits=result.edit("context"))

Follows Minder et al. 2025, "Controllable Context Sensitivity and the Knob Behind It".
"""

from __future__ import annotations

from interp.knob.behaviour import Behaviour, evaluate
from interp.knob.fit import fit_knob
from interp.knob.knob import Knob
from interp.knob.result import KnobResult
from interp.knob.search import search_exhaustively, search_layers
from interp.knob.search_result import ExhaustiveSearch, LayerSearch
from interp.knob.separation import Correlation, correlation
from interp.knob.side_effects import SideEffects, side_effects
from interp.knob.steering import Steering, steer
from interp.knob.training import Training

__all__ = [
    "Behaviour",
    "Correlation",
    "ExhaustiveSearch",
    "Knob",
    "KnobResult",
    "LayerSearch",
    "SideEffects",
    "Steering",
    "Training",
    "correlation",
    "evaluate",
    "fit_knob",
    "search_exhaustively",
    "search_layers",
    "side_effects",
    "steer",
]
