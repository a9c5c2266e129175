"""Deltas are the model's, centroids are their means however they arrive, and only fitting ones are used."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import interp
from interp.errors import BadInput, UnreadableFile
from probes import clue
from probes.centroids import CENTROIDS_FILE, Centroids, RunningMeans
from probes.certainty import confidence
from probes.clue import deltas, fit, score
from probes.traces import Experience, Response
from tests import families

DELIMITERS = ("w10", "w20")


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer())


def traces(questions: int = 6, samples: int = 3, seed: int = 0) -> Experience:
    """Random responses of unequal length; the reasoning of some begins in the prompt, of some never ends."""
    rng = np.random.default_rng(seed)
    rows = []
    for q in range(questions):
        prompt = (*rng.integers(30, 90, 3 + q % 3).tolist(), 10)
        for s in range(samples):
            middle = rng.integers(30, 90, rng.integers(2, 9)).tolist()
            tail = [] if s == 1 else [20, *rng.integers(30, 90, 2).tolist()]
            answer = str(rng.integers(3))
            rows.append(Response(f"q{q}", prompt, (*middle, *tail), answer, (q + s) % 2 == 0))
    return Experience(tuple(rows), DELIMITERS)


def whole_states(model: interp.Model, response: Response) -> np.ndarray:
    """Output of every block at every token of one trace run alone and whole, `[token layer width]`."""
    trace = model.run([list(response.trace)], read="resid_post")
    return trace.stack("resid_post")[:, 0].transpose(0, 1).numpy()


def expected_deltas(model: interp.Model, experience: Experience) -> np.ndarray:
    rows = []
    for response in experience:
        states, trace = whole_states(model, response), response.trace
        end = trace.index(20) if 20 in trace else len(trace) - 1
        rows.append(states[end] - states[trace.index(10)])
    return np.stack(rows)


def test_the_deltas_of_a_batch_are_those_of_each_trace_read_alone_and_whole(model: interp.Model) -> None:
    experience = traces()
    places = experience.reasoning(model.tokenizer, "ends")
    found = np.zeros((len(experience), model.spec.layers, model.spec.width))
    calls: list[tuple[int, int]] = []
    for rows, values in deltas(model, experience, places, 4, lambda done, total: calls.append((done, total))):
        found[rows] = values
    np.testing.assert_allclose(found, expected_deltas(model, experience), rtol=1e-4, atol=1e-4)
    assert np.abs(found).max() > 0.1
    assert calls[-1] == (18, 18)
    read = [i for rows, _ in deltas(model, experience, experience.reasoning(model.tokenizer, "drop"), 4) for i in rows]
    assert sorted(read) == [i for i, response in enumerate(experience) if 20 in response.tokens]


def test_fitted_centroids_are_the_mean_deltas_and_distances_the_layer_mean_of_l2(model: interp.Model) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends", batch_size=4)
    expected = expected_deltas(model, learned)
    right = np.array(learned.labels())
    for found, rows in ((centroids.success, expected[right]), (centroids.failure, expected[~right])):
        np.testing.assert_allclose(found, rows.mean(0), rtol=1e-4, atol=1e-4)
    around = [np.sqrt(((rows - rows.mean(0)) ** 2).sum(2).mean(0)) for rows in (expected[right], expected[~right])]
    np.testing.assert_allclose(centroids.spread, around, rtol=1e-3)
    assert centroids.counts == (int(right.sum()), int((~right).sum()))

    scored = score(model, held_out, centroids, batch_size=4)
    for i, delta in enumerate(expected_deltas(model, held_out)):
        by_hand = [math.sqrt(((delta[layer] - centroids.success[layer]) ** 2).sum()) for layer in range(2)]
        np.testing.assert_allclose(scored.to_success[i], by_hand, rtol=1e-4)
        assert scored.frame.to_success[i] == pytest.approx(sum(by_hand) / 2, rel=1e-4)
    assert scored.frame.tokens.tolist() == [len(response.tokens) for response in held_out]
    assert scored.frame.end_found.tolist() == [20 in response.tokens for response in held_out]
    assert scored.frame.question.tolist() == [response.question for response in held_out]


def test_scoring_looks_at_no_label(model: interp.Model) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends", certainty=False)
    blind = dataclasses.replace(
        held_out, responses=tuple(dataclasses.replace(response, correct=None) for response in held_out)
    )
    seen, unseen = (score(model, each, centroids, certainty=False) for each in (held_out, blind))
    np.testing.assert_array_equal(seen.to_success, unseen.to_success)
    np.testing.assert_array_equal(seen.projection, unseen.projection)
    assert seen.correct.any()
    with pytest.raises(BadInput, match="not known to be right or wrong"):
        _ = unseen.correct


@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_streamed_means_equal_those_of_all_deltas_at_once(chunk: int) -> None:
    rng = np.random.default_rng(0)
    values = (1000 + rng.normal(size=(500, 3, 8))).astype(np.float32)
    correct = rng.random(500) < 0.3
    means = RunningMeans()
    for first in range(0, 500, chunk):
        means.add(values[first : first + chunk], correct[first : first + chunk].tolist())
    whole = np.stack([values[correct].astype(float).mean(0), values[~correct].astype(float).mean(0)])
    np.testing.assert_allclose(means.means(), whole, rtol=1e-12)
    spread = [values[k].astype(float).std(0) for k in (correct, ~correct)]
    np.testing.assert_allclose(means.spread(), np.sqrt((np.square(spread)).sum(2)), rtol=1e-5)


def test_the_projection_shows_distances_along_the_line_between_the_centroids(model: interp.Model) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends", certainty=False)
    scored = score(model, held_out, centroids, certainty=False)
    values = expected_deltas(model, held_out).reshape(len(held_out), -1)
    success, failure = centroids.success.ravel(), centroids.failure.ravel()
    along = ((values - success) ** 2).sum(1) - ((values - failure) ** 2).sum(1)
    np.testing.assert_allclose(
        scored.projection[:, 0], -along / (2 * np.linalg.norm(success - failure)), rtol=1e-3, atol=1e-3
    )
    assert np.isfinite(scored.projection).all()
    assert scored.projection[:, 1].std() > 0


def test_confidence_is_what_generation_says_and_self_certainty_what_the_paper_defines(model: interp.Model) -> None:
    prompt = [5, 6, 7]
    generation = model.generate([prompt] * 5, max_new_tokens=9, temperature=1.0, seed=2)
    responses = [Response("q", tuple(prompt), tokens) for tokens in generation.tokens]
    responses.append(Response("q", (), (5, 6, 7, 8)))
    log_probability, certainty = confidence(model, responses)
    for i, sampled in enumerate(generation.log_probabilities):
        assert log_probability[i] == pytest.approx(np.mean(sampled), abs=1e-4)
    for i, response in enumerate(responses):
        ids = torch.tensor([response.trace])
        with torch.no_grad():
            probabilities = model.hf(ids).logits[0].double().softmax(-1)
        first = max(1, len(response.prompt))
        per_token = [
            -sum(math.log(families.VOCAB * p) for p in probabilities[t - 1].tolist()) / families.VOCAB
            for t in range(first, len(response.trace))
        ]
        assert certainty[i] == pytest.approx(sum(per_token) / len(per_token), rel=1e-4)


def test_passes_over_logits_stay_within_their_bound(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = [Response("q", (5, 6), tuple(range(7, 7 + n))) for n in (3, 9, 5, 5, 30)]
    whole = confidence(model, responses)
    monkeypatch.setattr("probes.certainty.LOGITS", 12 * families.VOCAB)
    np.testing.assert_allclose(confidence(model, responses), whole, rtol=1e-4)


def test_saved_centroids_are_whole(model: interp.Model, tmp_path: Path) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends")
    path = tmp_path / CENTROIDS_FILE
    centroids.save(path)
    assert load_file(path)["success"].shape == (2, model.spec.width)
    again = Centroids.load(tmp_path)
    for field in dataclasses.fields(Centroids):
        before, after = getattr(centroids, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)
        elif field.name != "parameters":
            assert before == after, field.name
    np.testing.assert_array_equal(
        score(model, held_out, again).to_failure, score(model, held_out, centroids).to_failure
    )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnreadableFile, match="does not hold centroids"):
        Centroids.load(path)
    with pytest.raises(UnreadableFile, match="does not hold centroids"):
        Centroids.load(tmp_path / "none.safetensors")


def test_what_does_not_belong_to_the_centroids_is_refused(model: interp.Model) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends", certainty=False)
    other = families.build("llama")
    families.randomise(other, seed=9)
    stranger = interp.wrap(other, tokenizer=families.word_tokenizer())
    with pytest.raises(BadInput, match="fit them again on traces of this model"):
        score(stranger, held_out, centroids)
    with pytest.raises(BadInput, match=r"3 of these 6 questions, 'q\d' among them"):
        score(model, traces(), centroids)
    assert set(centroids.unseen(traces()).questions) == set(held_out.questions)
    with pytest.raises(BadInput, match="from all of these questions"):
        centroids.unseen(learned)
    with pytest.raises(BadInput, match="of reasoning between"):
        score(model, dataclasses.replace(held_out, delimiters=None), centroids)
    foreign = dataclasses.replace(learned, model={"name": "x", "fingerprint": "y"})
    with pytest.raises(BadInput, match=r"written by x \(y\)"):
        fit(model, foreign, missing="ends")


def test_what_gives_no_centroids_is_refused(model: interp.Model) -> None:
    with pytest.raises(BadInput, match="lack one of the delimiters"):
        fit(model, traces())
    alike = Experience(tuple(dataclasses.replace(r, correct=True) for r in traces()), DELIMITERS)
    with pytest.raises(BadInput, match="all 18 traces are right"):
        fit(model, alike)
    only_cut_ones_wrong = Experience(
        tuple(dataclasses.replace(r, correct=20 in r.tokens) for r in traces()), DELIMITERS
    )
    with pytest.raises(BadInput, match="12 right and 0 wrong traces"):
        fit(model, only_cut_ones_wrong, missing="drop", certainty=False)
    broken = families.build("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3] = float("nan")
    with pytest.raises(BadInput, match=r"hidden states of trace \d+ at layer 1 are not finite"):
        fit(interp.wrap(broken, tokenizer=families.word_tokenizer()), traces(), missing="ends")
    encoder = interp.wrap(families.build("bert"), tokenizer=families.word_tokenizer())
    with pytest.raises(BadInput, match="is an encoder"):
        fit(encoder, traces(), missing="ends", certainty=False)


def test_no_more_deltas_are_kept_than_are_drawn(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, held_out = traces().split(0.5)
    centroids = fit(model, learned, missing="ends", certainty=False)
    monkeypatch.setattr(clue, "PROJECTED", 4)
    kept = np.isfinite(score(model, held_out, centroids, certainty=False).projection).all(1)
    assert kept.sum() == 4
