"""Skills as prompt sets."""

from __future__ import annotations

import pytest

from interp.errors import BadInput
from interp.pocket.prompts import addition_prompts, skill_prompts
from interp.pocket.skills import SKILLS
from interp.pocket.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_becomes_prompts_whose_answers_tokenise_in_context(skill, tokenizer):
    prompts = skill_prompts(tokenizer, skill, 8, seed=3)
    for tokens, answer, answer_tokens in zip(prompts.tokens, prompts.answers, prompts.answer_tokens, strict=True):
        assert tokenizer.decode([*tokens, *answer_tokens], skip_special_tokens=True).endswith(answer)


def test_sums_with_and_without_steps_are_the_same_sums(tokenizer):
    with_steps, direct = addition_prompts(tokenizer, 20)
    for long, short in zip(with_steps.answers, direct.answers, strict=True):
        assert long.split()[-1] == short.strip()
        assert "Answer:" in long
    assert len({*direct.texts}) > 15


def test_an_unknown_skill_is_refused_with_the_known_ones(tokenizer):
    with pytest.raises(BadInput, match="did you mean 'needle'"):
        skill_prompts(tokenizer, "needles", 2)
