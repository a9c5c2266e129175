"""The retrieval score against a second, independent implementation, and its bookkeeping."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import interp
from interp.errors import BadInput, NoTestPassed
from interp.heads.retrieval import copy_scores, retrieval_scores, rouge1_recall
from interp.heads.scores import HeadScores, agreement
from interp.heads.sharing import shared_batches
from interp.runs import Journal
from interp.tasks.prompts import PromptSet

WORDS = ["<pad>", *"abcdef"]


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


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<pad>")


SIZES = {"vocab_size": len(WORDS), "eos_token_id": None, "bos_token_id": None}
FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=128, n_positions=256, **SIZES)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=256,
            **SIZES,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            sliding_window=24,
            max_position_embeddings=256,
            **SIZES,
        )
    ),
}


def make_model(family, tokenizer, attention):
    torch.manual_seed(0)
    hf = FAMILIES[family]()
    for parameter in hf.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    hf.set_attn_implementation(attention)
    return interp.wrap(hf.eval(), tokenizer)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Random words; the first half of the tests share a beginning, as needle tests of one haystack do."""
    rng = np.random.default_rng(0)
    trunk = rng.choice(WORDS[1:], 60).tolist()
    texts, spans = [], []
    for i in range(12):
        own = rng.choice(WORDS[1:], int(rng.integers(20, 50))).tolist()
        words = [*trunk[: 34 + 3 * i], *own] if i < 6 else own
        start = len(words) - 18
        texts.append(" ".join(words))
        spans.append((2 * start, 2 * start + 15))
    answers = [f" {a} {b}" for a, b in rng.choice(WORDS[1:], (12, 2))]
    return PromptSet.build(tokenizer, texts, answers, spans={"value": spans})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_equals_a_brute_force_scorer_with_eager_attention(family, tokenizer, prompts):
    model = make_model(family, tokenizer, "eager" if family == "gemma2" else "sdpa")
    oracle = make_model(family, tokenizer, "eager").hf
    mine = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=6, batch_size=4)
    assert (mine.samples > 0).sum() >= 4, "no head ever copied, so this would compare zeros"
    for i in range(len(prompts)):
        wanted, recall, unsure = brute_force(
            oracle, tokenizer, prompts.tokens[i], prompts.spans["value"][i], prompts.answers[i], 6
        )
        np.testing.assert_allclose(mine.samples[i][~unsure], wanted[~unsure], err_msg=f"test {i}")
        assert mine.tests.recall[i] == pytest.approx(recall)


def test_batches_that_share_a_prefix_give_the_same_scores_as_single_prompts(tokenizer, prompts):
    model = make_model("llama", tokenizer, "sdpa")
    assert any(batch.shared > 30 for batch in shared_batches(prompts.tokens, 4))
    alone = [retrieval_scores(model, prompts[i], gate=-1.0, max_new_tokens=4).samples[0] for i in range(len(prompts))]
    for size in (1, 3, 8):
        together = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=4, batch_size=size)
        np.testing.assert_allclose(together.samples, np.stack(alone))


def test_one_teacher_forced_pass_equals_decoding_where_the_answer_is_what_the_model_says(tokenizer, prompts):
    model = make_model("llama", tokenizer, "sdpa")
    said = model.generate(prompts, max_new_tokens=4)
    own = PromptSet.build(
        tokenizer,
        prompts.texts,
        [" " + " ".join(tokenizer.convert_ids_to_tokens(list(new))) for new in said.tokens],
        spans={"value": [(2 * a, 2 * b - 1) for a, b in prompts.spans["value"]]},
    )
    assert own.spans["value"] == prompts.spans["value"]
    assert own.answer_tokens == said.tokens
    stepwise = retrieval_scores(model, own, max_new_tokens=4)
    chunk = retrieval_scores(model, own, method="chunk")
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


def test_tests_below_the_gate_contribute_nothing_and_none_at_all_is_said_clearly(tokenizer, prompts):
    model = make_model("llama", tokenizer, "sdpa")
    scores = retrieval_scores(model, prompts, max_new_tokens=2, gate=1.0)
    assert len(scores.samples) == 0
    assert len(scores.tests) == len(prompts)
    with pytest.raises(NoTestPassed, match="none of 12 tests passed the gate"):
        _ = scores.frame


def test_an_interrupted_scoring_resumes_without_repeating_finished_tests(tmp_path, tokenizer, prompts, monkeypatch):
    model = make_model("llama", tokenizer, "sdpa")
    whole = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=3, batch_size=4)

    def stop_after(done, _total):
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "j.jsonl", {}) as journal:
        retrieval_scores(
            model, prompts, gate=-1.0, max_new_tokens=3, batch_size=4, journal=journal, progress=stop_after
        )
    asked = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda part, **more: asked.append(len(part)) or generate(part, **more))
    with Journal(tmp_path / "j.jsonl", {}, resume=True) as journal:
        resumed = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=3, batch_size=4, journal=journal)
    assert sum(asked) == len(prompts) - 5
    np.testing.assert_array_equal(resumed.samples, whole.samples)
    assert resumed.tests.equals(whole.tests)


def test_scores_survive_a_round_trip_through_a_run(tmp_path, tokenizer, prompts):
    model = make_model("llama", tokenizer, "sdpa")
    scores = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=3)
    scores.save(tmp_path / "run")
    again = HeadScores.load(tmp_path / "run")
    np.testing.assert_array_equal(again.samples, scores.samples)
    assert again.frame.equals(scores.frame)
    assert again.model == scores.model
    assert again.parameters == scores.parameters


def test_the_table_is_sorted_and_its_intervals_hold_the_means(tokenizer, prompts):
    model = make_model("llama", tokenizer, "sdpa")
    frame = retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=6).frame
    assert frame.score.is_monotonic_decreasing
    assert ((frame.low <= frame.score) & (frame.score <= frame.high)).all()
    assert len(frame) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [({"method": "stepwize"}, "did you mean 'stepwise'"), ({"dedup": "x"}, "code, paper"), ({"span": "vale"}, "value")],
)
def test_bad_requests_name_the_valid_choices(tokenizer, prompts, change, words):
    model = make_model("llama", tokenizer, "sdpa")
    with pytest.raises(BadInput, match=words):
        retrieval_scores(model, prompts, **change)
