"""HeadKV-R2, QRHead and RazorAttention's probe against whole eager attention matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import BadInput
from interp.heads.headkv import headkv_scores, word_f1
from interp.heads.qrhead import NO_QUERY, Instance, bundled_instances, document_scores, qrhead_scores, rank_documents
from interp.heads.razor import razor_mask, razor_scores
from interp.tasks.prompts import PromptSet


@torch.no_grad()
def attention(hf, tokens):
    """Whole eager attention, `[layer head query key]`."""
    assert hf.config._attn_implementation == "eager"
    return torch.stack(hf(torch.tensor([list(tokens)]), output_attentions=True).attentions)[:, 0].double().numpy()


@pytest.fixture
def pair(family, make_model):
    """A model with its usual kernel, and the same weights with eager attention."""
    return make_model(family, "eager" if family == "gemma2" else "sdpa"), make_model(family, "eager").hf


def test_razor_scores_equal_the_mass_on_whole_attention_matrices(pair):
    model, oracle = pair
    segment, repeats = 9, 4
    mine = razor_scores(model, segment=segment, repeats=repeats, sequences=2, seed=3)
    generator = torch.Generator().manual_seed(3)
    words = torch.arange(1, 7)
    for sample in mine.samples:
        part = words[torch.randint(len(words), (segment,), generator=generator)].tolist()
        rows = attention(oracle, part * repeats)
        queries = range(segment, segment * repeats)
        induction = np.zeros(rows.shape[:2])
        for i in queries:
            for r in range(1, i // segment + 1):
                induction += rows[:, :, i, i - segment * r + 1]
        np.testing.assert_allclose(sample, induction / len(queries), atol=1e-5)


def test_the_echo_score_is_the_mass_on_earlier_copies_of_the_token(pair):
    model, oracle = pair
    mine = razor_scores(model, segment=7, repeats=3, sequences=1, seed=0)
    generator = torch.Generator().manual_seed(0)
    part = torch.arange(1, 7)[torch.randint(6, (7,), generator=generator)].tolist()
    rows = attention(oracle, part * 3)
    echo = sum(rows[:, :, i, i - 7 * r] for i in range(7, 21) for r in range(1, i // 7 + 1)) / 14
    np.testing.assert_allclose(mine.components["echo"], echo, atol=1e-5)


def test_razor_selects_its_published_shares_of_key_value_heads(llama):
    scores = razor_scores(llama, segment=8, sequences=2)
    mask = razor_mask(scores, induction_ratio=0.5, echo_ratio=0.25)
    assert mask.kind == "kv"
    by_group = scores.scores.reshape(2, 2, 2).max(-1)
    assert by_group[mask.selected].max() == by_group.max()
    assert 2 <= mask.selected.sum() <= 3


def test_razor_refuses_a_sequence_that_repeats_nothing(llama):
    with pytest.raises(BadInput, match="4 copies of 1 tokens"):
        razor_scores(llama, segment=1)


def test_headkv_scores_equal_the_strongest_needle_keys_of_whole_attention_matrices(pair, prompts):
    model, oracle = pair
    said = model.generate(prompts, max_new_tokens=3)
    starts = [(2 * a, 2 * b - 1) for a, b in prompts.spans["value"]]
    own = PromptSet.build(
        model.tokenizer,
        prompts.texts,
        [" " + " ".join(model.tokenizer.convert_ids_to_tokens(list(new))) for new in said.tokens],
        spans={"needle": starts},
    )
    mine = headkv_scores(model, own, max_new_tokens=3)
    assert len(mine.samples) == len(own)
    for i, sample in enumerate(mine.samples):
        start, end = own.spans["needle"][i]
        n, new = end - start, own.answer_tokens[i]
        rows = attention(oracle, [*own.tokens[i], *new[:-1]])[:, :, -len(new) :]
        wanted = np.zeros(sample.shape)
        for layer, head, step in np.ndindex(*rows.shape[:3]):
            row = rows[layer, head, step]
            for key in np.argsort(-row)[:n]:
                if start <= key < end:
                    wanted[layer, head] += 10 * row[key] / (n * len(new))
        np.testing.assert_allclose(sample, wanted, atol=1e-4)


def test_word_f1_balances_what_is_said_and_what_is_wanted():
    assert word_f1("red ball", "the red ball") == pytest.approx(0.8)
    assert word_f1("", "ball") == 0.0
    assert word_f1("ball", "ball") == 1.0


INSTANCE = Instance(
    query="a b c a", documents=("a b c d e f a", "f e d c b a f f", "b b c c d d a e", "e a e b e c"), gold=(1, 3)
)


def test_qrhead_scores_equal_calibrated_sums_over_whole_attention_matrices(pair):
    model, oracle = pair
    mine = document_scores(model, INSTANCE)
    tokenizer = model.tokenizer

    def query_rows(query):
        """Mean attention of the instruction's and query's tokens, and the documents' places."""
        text, spans = "Here are some paragraphs:\n\n", []
        for i, document in enumerate(INSTANCE.documents):
            text += f"[{i + 1}] "
            spans.append((len(text), len(text) + len(document)))
            text += f"{document}\n\n"
        start = len(text)
        text += "Please find information that are relevant to the following query in the paragraphs above.\n\n"
        text += f"Query: {query}"
        coded = tokenizer(text, return_offsets_mapping=True)
        where = coded["offset_mapping"]
        asking = [t for t, (_, stop) in enumerate(where) if stop > start]
        places = [[t for t, (a, b) in enumerate(where) if a < end and b > begin] for begin, end in spans]
        return attention(oracle, coded["input_ids"])[:, :, asking].mean(2), places

    asked, places = query_rows(INSTANCE.query)
    empty, _ = query_rows(NO_QUERY)
    for i, place in enumerate(places):
        part = asked[:, :, place] - empty[:, :, place]
        floor = part.mean(-1, keepdims=True) - 2 * part.std(-1, keepdims=True)
        np.testing.assert_allclose(mine[i], np.where(part > floor, part, 0).sum(-1), atol=1e-5)


def test_qrscore_sums_the_gold_documents_and_ranks_by_the_chosen_heads(llama):
    by_document = document_scores(llama, INSTANCE)
    scores = qrhead_scores(llama, [INSTANCE, INSTANCE])
    np.testing.assert_allclose(scores.samples[0], by_document[[1, 3]].sum(0))
    heads = [(0, 1), (1, 3)]
    order = rank_documents(llama, INSTANCE, heads)
    relevance = [by_document[i, 0, 1] + by_document[i, 1, 3] for i in order]
    assert relevance == sorted(relevance, reverse=True)


def test_bundled_instances_ask_for_a_needle_that_only_the_gold_document_holds():
    for instance in bundled_instances(7, documents=4, seed=1):
        key = instance.query.removesuffix("?").split(" of ")[-1]
        assert [i for i, text in enumerate(instance.documents) if f" of {key} is " in text] == list(instance.gold)


def test_gold_documents_must_exist():
    with pytest.raises(BadInput, match="gold documents"):
        Instance("a", ("b",), (1,))
