"""The retrieval score against a second, independent implementation, and its bookkeeping."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from interp.errors import BadInput, NoTestPassed
from interp.heads.retrieval import copy_scores, retrieval_scores, rouge1_recall
from interp.heads.scores import HeadScores, agreement
from interp.heads.sharing import shared_batches
from interp.runs import Journal
from interp.tasks.prompts import PromptSet


@torch.no_grad()
def brute_force(hf, tokenizer, tokens, span, answer, limit):
    """The published score once more: eager attention, whole matrices, no cache, the text recomputed for every token.

    Returns scores `[layer head]`, the recall, and the heads whose two strongest keys were ever too close to call.
    """
    assert hf.config._attn_implementation == "eager"
    start, end = span
    ids, new = list(tokens), []
    score = np.zeros((hf.config.num_hidden_layers, hf.config.num_attention_heads))
    unsure = np.zeros(score.shape, dtype=bool)
    while len(new) < limit:
        out = hf(torch.tensor([ids]), output_attentions=True, use_cache=False)
        word = int(out.logits[0, -1].argmax())
        for layer, head in np.ndindex(score.shape):
            row = out.attentions[layer][0, head, -1]
            first, second = row.topk(2).values.tolist()
            unsure[layer, head] |= first - second < 1e-5
            key = int(row.argmax())
            if start <= key < end and tokens[key] == word:
                score[layer, head] += 1 / (end - start)
        new.append(word)
        ids.append(word)
        if word == hf.config.eos_token_id or "\n" in tokenizer.decode(new):
            break
    said = re.findall(r"\w+", tokenizer.decode(new, skip_special_tokens=True).lower())
    wanted = re.findall(r"\w+", answer.lower())
    return score, sum(min(said.count(w), wanted.count(w)) for w in set(wanted)) / len(wanted), unsure


def test_the_score_equals_a_brute_force_scorer_with_eager_attention(family, make_model, tokenizer, prompts):
    model = make_model(family, "eager" if family == "gemma2" else "sdpa")
    oracle = make_model(family, "eager").hf
    mine = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=6, batch_size=4)
    assert (mine.samples > 0).sum() >= 4, "no head ever copied, so this would compare zeros"
    for i in range(len(prompts)):
        wanted, recall, unsure = brute_force(
            oracle, tokenizer, prompts.tokens[i], prompts.spans["value"][i], prompts.answers[i], 6
        )
        np.testing.assert_allclose(mine.samples[i][~unsure], wanted[~unsure], err_msg=f"test {i}")
        assert mine.tests.recall[i] == pytest.approx(recall)


def test_batches_that_share_a_prefix_give_the_same_scores_as_single_prompts(llama, prompts):
    assert any(batch.shared > 30 for batch in shared_batches(prompts.tokens, 4))
    alone = [retrieval_scores(llama, prompts[i], gate=-1.0, max_new_tokens=4).samples[0] for i in range(len(prompts))]
    for size in (1, 3, 8):
        together = retrieval_scores(llama, prompts, gate=-1.0, max_new_tokens=4, batch_size=size)
        np.testing.assert_allclose(together.samples, np.stack(alone))


def test_one_teacher_forced_pass_equals_decoding_where_the_answer_is_what_the_model_says(llama, tokenizer, prompts):
    said = llama.generate(prompts, max_new_tokens=4)
    own = PromptSet.build(
        tokenizer,
        prompts.texts,
        [" " + " ".join(tokenizer.convert_ids_to_tokens(list(new))) for new in said.tokens],
        spans={"value": [(2 * a, 2 * b - 1) for a, b in prompts.spans["value"]]},
    )
    assert own.spans["value"] == prompts.spans["value"]
    assert own.answer_tokens == said.tokens
    stepwise = retrieval_scores(llama, own, max_new_tokens=4)
    chunk = retrieval_scores(llama, own, method="chunk")
    assert stepwise.samples.any()
    np.testing.assert_allclose(stepwise.samples, chunk.samples)
    assert agreement(stepwise, chunk)["max_difference"] == 0


def test_a_copy_counts_only_inside_the_span_and_only_of_the_same_token():
    prompt = [5, 6, 7, 6, 9]
    looked_at = torch.tensor([[[1, 2, 3]], [[0, 4, 9]]])  # [layer head step]
    predicted = [6, 7, 6]
    code = copy_scores(looked_at, predicted, prompt, (1, 4), "code")
    np.testing.assert_allclose(code, [[1.0], [0.0]])
    edges = copy_scores(looked_at, predicted, prompt, (2, 3), "code")
    np.testing.assert_allclose(edges, [[1.0], [0.0]])
    wrong_token = copy_scores(looked_at, [7, 7, 7], prompt, (1, 4), "code")
    np.testing.assert_allclose(wrong_token, [[1 / 3], [0.0]])


def test_the_paper_counts_distinct_tokens_and_the_code_counts_steps():
    prompt = [5, 6, 7, 6, 9]
    looked_at = torch.tensor([[[1, 3, 1, 3]]])
    steps = [6, 6, 6, 6]
    assert copy_scores(looked_at, steps, prompt, (1, 4), "code")[0, 0] == pytest.approx(4 / 3)
    assert copy_scores(looked_at, steps, prompt, (1, 4), "paper")[0, 0] == pytest.approx(1 / 2)


def test_recall_counts_words_with_multiplicity():
    assert rouge1_recall("Sit in the PARK, the park.", "the park the") == 1.0
    assert rouge1_recall("the", "the park the") == pytest.approx(1 / 3)
    assert rouge1_recall("", "the park") == 0.0


def test_tests_below_the_gate_contribute_nothing_and_none_at_all_is_said_clearly(llama, prompts):
    scores = retrieval_scores(llama, prompts, max_new_tokens=2, gate=1.0)
    assert len(scores.samples) == 0
    assert len(scores.tests) == len(prompts)
    with pytest.raises(NoTestPassed, match="none of 12 tests passed the gate"):
        _ = scores.frame


def test_an_interrupted_scoring_resumes_without_repeating_finished_tests(llama, tmp_path, prompts, monkeypatch):
    whole = retrieval_scores(llama, prompts, gate=-1.0, max_new_tokens=3, batch_size=4)

    def stop_after(done, _total):
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "j.jsonl", {}) as journal:
        retrieval_scores(
            llama, prompts, gate=-1.0, max_new_tokens=3, batch_size=4, journal=journal, progress=stop_after
        )
    asked = []
    generate = llama.generate
    monkeypatch.setattr(llama, "generate", lambda part, **more: asked.append(len(part)) or generate(part, **more))
    with Journal(tmp_path / "j.jsonl", {}, resume=True) as journal:
        resumed = retrieval_scores(llama, prompts, gate=-1.0, max_new_tokens=3, batch_size=4, journal=journal)
    assert sum(asked) == len(prompts) - 5
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert resumed.tests.equals(whole.tests)


def test_scores_survive_a_round_trip_through_a_run(llama, tmp_path, prompts):
    scores = retrieval_scores(llama, prompts, gate=-1.0, max_new_tokens=3)
    scores.save(tmp_path / "run")
    again = HeadScores.load(tmp_path / "run")
    np.testing.assert_array_equal(again.samples, scores.samples)
    assert again.frame.equals(scores.frame)
    assert again.model == scores.model
    assert again.parameters == scores.parameters


def test_the_table_is_sorted_and_its_intervals_hold_the_means(llama, prompts):
    frame = retrieval_scores(llama, prompts, gate=-1.0, max_new_tokens=6).frame
    assert frame.score.is_monotonic_decreasing
    assert ((frame.low <= frame.score) & (frame.score <= frame.high)).all()
    assert len(frame) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [({"method": "stepwize"}, "did you mean 'stepwise'"), ({"dedup": "x"}, "code, paper"), ({"span": "vale"}, "value")],
)
def test_bad_requests_name_the_valid_choices(llama, prompts, change, words):
    with pytest.raises(BadInput, match=words):
        retrieval_scores(llama, prompts, **change)
