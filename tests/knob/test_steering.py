"""A knob beside nothing and beside random directions: what is compared is what it says, and as strong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from interp.knob import Knob, KnobResult, Steering, steer
from interp.knob.steering import right_angles
from interp.tasks.context_prior import PromptForm, context_prompts
from interp.tasks.prompts import PromptSet


@pytest.fixture(scope="module")
def prompt(pocket: interp.Model, fitted: KnobResult, form: PromptForm) -> PromptSet:
    """A question with a context that contradicts what the model knows, and no instruction."""
    return context_prompts(pocket.tokenizer, fitted.items["test"], form.silent, ("context",))[0]


def test_the_knob_changes_the_answer_and_directions_moved_as_far_do_not(
    pocket: interp.Model, fitted: KnobResult, prompt: PromptSet
) -> None:
    found = steer(pocket, fitted.knob, prompt, "context")
    known, stated = prompt.distractors[0], prompt.answers[0]
    assert found.texts[0].startswith(known)
    assert found.texts[1].startswith(stated)
    assert all(text.startswith(known) for text in found.texts[2:])
    assert found.answers == (stated, known)
    assert found.probabilities[1, 0] > 0.9 > 0.1 > found.controls[:, 0].max()
    assert found.frame.condition.tolist() == ["without", "knob", *(f"random {i}" for i in range(1, 6))]


def test_every_condition_is_what_it_says(pocket: interp.Model, fitted: KnobResult, prompt: PromptSet) -> None:
    found = steer(pocket, fitted.knob, prompt, 30.0, new_tokens=3, controls=2, seed=4)
    site, direction = fitted.knob.site, fitted.knob.direction
    plain = pocket.run(prompt, read=site, positions=-1)[site][0, 0]
    assert found.coordinate == pytest.approx(float(plain @ direction), abs=1e-3)
    moved = [interp.add(site, other, abs(30 - found.coordinate)) for other in right_angles(direction, 2, 4)]
    edits = [[], [fitted.knob.edit(30.0)], *([edit.at(positions=slice(-1, None))] for edit in moved)]
    tokens = [prompt.answer_tokens[0][0], prompt.distractor_tokens[0][0]]
    for row, edit in enumerate(edits):
        assert found.texts[row] == pocket.generate(prompt, edits=edit, max_new_tokens=3).texts[0]
        alone = pocket.run(prompt, edits=edit, logits="last").logits[0].softmax(-1)[tokens]
        np.testing.assert_allclose(found.probabilities[row], alone, rtol=1e-3, atol=1e-6)
    for edit in moved:
        after = pocket.run(prompt, read=site, edits=edit.at(positions=-1), positions=-1)[site][0, 0]
        assert float((after - plain).norm()) == pytest.approx(abs(30 - found.coordinate), rel=1e-4)
        assert float(after @ direction) == pytest.approx(found.coordinate, abs=1e-2)


def test_controls_are_unit_vectors_at_right_angles_that_the_seed_decides() -> None:
    direction = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
    found = right_angles(direction, 3, seed=1)
    torch.testing.assert_close(found @ direction, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert torch.equal(found, right_angles(direction, 3, seed=1))
    assert not torch.allclose(found, right_angles(direction, 3, seed=2))


def test_of_a_text_the_tokens_said_first_are_measured(pocket: interp.Model, fitted: KnobResult) -> None:
    found = steer(pocket, fitted.knob, "The city of Graz is in", 60.0, controls=1)
    row = list(pocket.tokenizer("The city of Graz is in")["input_ids"])
    logits = [pocket.run([row], edits=edit).logits[0] for edit in ([], [fitted.edit(60.0)])]
    assert set(found.answers) == {pocket.tokenizer.decode([int(one.argmax())]) for one in logits}
    assert found.probabilities[0, 0] == pytest.approx(float(logits[0].softmax(-1).max()), rel=1e-4)


def test_a_steering_survives_its_run(pocket: interp.Model, fitted: KnobResult, prompt: PromptSet, tmp_path) -> None:
    found = steer(pocket, fitted.knob, prompt, "prior", controls=1)
    found.save(tmp_path / "run")
    again = Steering.load(tmp_path / "run")
    assert again.frame.equals(found.frame)
    assert again.plot().to_json() == found.plot().to_json()
    assert repr(again) == repr(found)


def test_wrong_requests_are_refused(pocket: interp.Model, fitted: KnobResult, prompt: PromptSet) -> None:
    with pytest.raises(BadInput, match="at least one random direction"):
        steer(pocket, fitted.knob, prompt, 1.0, controls=0)
    with pytest.raises(BadInput, match="no value called 'up'"):
        steer(pocket, fitted.knob, prompt, "up")
    with pytest.raises(BadInput, match="has width 256"):
        steer(pocket, Knob(0, torch.eye(8)[:1]), prompt, 1.0)
    with pytest.raises(BadInput, match="rank 2"):
        steer(pocket, Knob(0, torch.eye(256)[:2]), prompt, 1.0)
    with pytest.raises(BadInput, match="one prompt is read at a time"):
        steer(pocket, fitted.knob, prompt.select([0, 0]), 1.0)
