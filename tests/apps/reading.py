"""What is on a drawn page."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np


def charts(test: Any) -> list[dict[str, Any]]:
    """The figures on a page, as the browser gets them."""
    return [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]


def said(test: Any) -> str:
    """Every sentence on a page."""
    kinds = ("error", "warning", "info", "success", "caption", "text", "markdown")
    return "\n".join(element.value for kind in kinds for element in getattr(test, kind))


def numbers(values: Any) -> np.ndarray:
    """Numbers of a figure, which plotly may have packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    return np.array(values)
