"""How sure a model was of a response, from its probabilities alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from interp.tracing.model import Model
from probes.traces import Response

LOGITS = 2**26
"""Logits that one pass may hold (256 MB in float32)."""


def confidence(model: Model, responses: Sequence[Response]) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability and self-certainty of every response, `[response]` each, in nats, at temperature 1.

    Self-certainty (Kang et al. 2025, "Scalable Best-of-N Selection for Large Language Models via Self-Certainty") is
    the mean over the response's n tokens of KL(U || p_i), where p_i is the model's distribution before token i and U
    the uniform one over the V entries of its vocabulary: -1/(nV) sum_i sum_v log(V p_i(v)). Higher is surer. A first
    token that nothing comes before has no distribution and is left out.
    """
    log_probability, certainty = np.full((2, len(responses)), math.nan)
    order = sorted(range(len(responses)), key=lambda i: len(responses[i].trace))
    while order:
        longest = len(responses[order[-1]].trace)
        rows = order[-max(1, LOGITS // (longest * model.spec.vocab)) :]
        del order[-len(rows) :]
        trace = model.run([list(responses[i].trace) for i in rows], logits="all")
        for row, i in enumerate(rows):
            first, last = max(1, len(responses[i].prompt)), len(responses[i].trace)
            if first < last:
                before = trace.logits[row, first - 1 : last - 1].float().log_softmax(-1)
                said = trace.tokens[row, first:last, None].to(before.device)
                log_probability[i] = float(before.gather(-1, said).mean())
                certainty[i] = float(-before.mean() - math.log(before.shape[-1]))
    return log_probability, certainty
