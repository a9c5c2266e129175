"""FlexAttention stays in place: rows are recomputed beside it and its outputs edited, with nothing compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import interp
from tests.families import ENCODERS, prompts, ragged
from tests.tracing.handwritten import HandModel
from tests.tracing.test_reads import close


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox", "modernbert"])
def test_flex_attention_reads_and_edits_what_the_hand_written_model_does(
    family: str, model_of: Callable[..., interp.Model]
) -> None:
    model = model_of(family, "flex_attention")
    assert model.attention == "flex_attention"
    ids, hand = prompts(), HandModel(model.hf)
    with torch.no_grad():
        expected = hand.run(ids)
    trace = model.run(ids, read=["pattern", "z", "q_rot"], logits="all")
    close(trace.logits, expected["logits"])
    for site in trace:
        close(trace[site], expected[str(site)], site)
    edits = [interp.scale("z.0.1", -2.0), interp.scale("q_rot.1", 0.5), interp.attend("pattern.1.2", "uniform")]
    eager = model_of(family)
    for side in ("left", "right"):
        flex = model.run(ragged(), edits=edits, read="pattern.1", logits="last", padding_side=side)  # type: ignore[arg-type]
        close(flex.logits, eager.run(ragged(), edits=edits).logits)
    if family in ENCODERS:
        return
    assert (
        model.generate(prompts(), max_new_tokens=3, edits=edits).tokens
        == eager.generate(prompts(), max_new_tokens=3, edits=edits).tokens
    )
