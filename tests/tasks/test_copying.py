"""Copy stories name their object once before the end, and mark where."""

from __future__ import annotations

import pytest

from interp.errors import BadInput
from interp.heads.retrieval import retrieval_scores
from interp.tasks.copying import copy_prompts


@pytest.fixture
def stories260k(shared):
    import interp

    return interp.load(shared / "models" / "stories260k")


def test_the_marked_value_is_the_answer_and_the_only_mention(stories260k):
    prompts = copy_prompts(stories260k.tokenizer, 20, seed=1)
    for text, tokens, answer, span in zip(
        prompts.texts, prompts.tokens, prompts.answers, prompts.spans["value"], strict=True
    ):
        assert text.count(f"{answer}.") == 1
        assert stories260k.tokenizer.decode(tokens[slice(*span)]).strip() == answer.strip()


def test_a_real_story_model_has_copy_heads_in_its_last_layer(stories260k):
    scores = retrieval_scores(stories260k, copy_prompts(stories260k.tokenizer, 40), method="chunk")
    assert len(scores.samples) > 10
    (layer, _), *_ = scores.above(0.3)
    assert layer == 4
    assert scores.scores[:2].max() < 0.1


@pytest.mark.parametrize("change", [{"n": 0}, {"sentences": 9}])
def test_impossible_stories_are_refused(stories260k, change):
    with pytest.raises(BadInput, match="need n >= 1"):
        copy_prompts(stories260k.tokenizer, **change)
