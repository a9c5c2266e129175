"""IOI prompts: who stands where, what each corruption changes, and which words are refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import interp
from interp.errors import BadInput
from interp.pocket.skills import names as taught
from interp.tasks.ioi import CORRUPTIONS, STYLES, ioi_prompts
from interp.tasks.vocabulary import vocabulary


def said(tokenizer, prompts, role):
    """The text of a role in every prompt, without the space before it."""
    spans = zip(prompts.tokens, prompts.spans[role], strict=True)
    return [tokenizer.decode(tokens[start:end]).strip() for tokens, (start, end) in spans]


@pytest.fixture(params=["pocket", "gpt2"])
def real_tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
@pytest.mark.parametrize("style", STYLES)
def test_roles_are_where_the_names_stand(real_tokenizer, order, style):
    prompts = ioi_prompts(real_tokenizer, 30, seed=3, order=order, style=style)
    about = prompts.metadata
    assert said(real_tokenizer, prompts, "IO") == [row["io"] for row in about]
    assert (
        said(real_tokenizer, prompts, "S1") == said(real_tokenizer, prompts, "S2") == [row["subject"] for row in about]
    )
    assert set(said(real_tokenizer, prompts, "end")) == {"to"}
    for i, tokens in enumerate(prompts.tokens):
        io, s1, after, s2, end = (prompts.spans[role][i] for role in ("IO", "S1", "S1+1", "S2", "end"))
        assert (io < s1) == (order == "ABBA")
        assert max(io, s1) < s2 < end == (len(tokens) - 1, len(tokens))
        assert after == (s1[1], s1[1] + 1)
    assert prompts.answers == tuple(f" {row['io']}" for row in about)
    assert prompts.distractors == tuple(f" {row['subject']}" for row in about)
    assert {len(tokens) for tokens in prompts.answer_tokens} == {1}


def test_every_template_and_order_is_used_equally_often(pocket):
    prompts = ioi_prompts(pocket, 60, seed=1)
    cells = Counter((row["template"], row["order"]) for row in prompts.metadata)
    assert len(cells) == 2 * len(STYLES["general"]) == 30
    assert set(cells.values()) == {2}


def test_templates_are_fifteen_sentences_that_name_everyone_once():
    assert len(set(STYLES["general"])) == 15
    for template in (*STYLES["general"], *STYLES["pocket"]):
        slots = [template.count(f"{{{slot}}}") for slot in ("first", "second", "subject", "place", "object")]
        assert slots == [1] * 5
        assert template.index("{first} and {second}") < template.index("{subject}")
        assert template.endswith("{object} to")


def test_the_pocket_style_is_what_the_bundled_model_was_taught(pocket):
    prompts = ioi_prompts(pocket, 64, seed=4, style="pocket")
    for text, answer, row in zip(prompts.texts, prompts.answers, prompts.metadata, strict=True):
        names = row["io"], row["subject"], row["order"]
        item = taught.ioi(*names, row["template"], row["place"], row["object"])
        assert (text, answer) == (item.prompt, item.answer)
    assert {row["template"] for row in prompts.metadata} == set(range(len(STYLES["pocket"])))


def test_a_seed_gives_the_same_prompts_and_another_gives_others(pocket):
    assert ioi_prompts(pocket, 20, seed=1).hash == ioi_prompts(pocket, 20, seed=1).hash
    assert ioi_prompts(pocket, 20, seed=1).hash != ioi_prompts(pocket, 20, seed=2).hash


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_changes_the_tokens_of_its_names_and_no_other(pocket, corruption):
    changes = {
        "S2->IO": {"S2"},
        "IO->RAND": {"IO"},
        "S->RAND": {"S1", "S2"},
        "S1->RAND": {"S1"},
        "S2->RAND": {"S2"},
        "IO<->S1": {"IO", "S1"},
        "ABC": {"IO", "S1", "S2"},
    }[corruption]
    prompts = ioi_prompts(pocket, 20, seed=5, corruption=corruption)
    twin = prompts.counterfactual
    for i, (a, b) in enumerate(zip(prompts.tokens, twin.tokens, strict=True)):
        differ = {t for t in range(len(a)) if a[t] != b[t]}
        assert differ == {prompts.spans[role][i][0] for role in changes}
    assert twin.spans == prompts.spans
    names = [said(pocket, twin, role) for role in ("IO", "S1", "S2")]
    distinct = {len(set(row)) for row in zip(*names, strict=True)}
    assert distinct == ({3} if corruption in ("S1->RAND", "S2->RAND", "ABC") else {2})


def test_a_counterfactual_has_the_answer_that_fits_it(pocket):
    prompts = ioi_prompts(pocket, 10, corruption="S2->IO")
    assert prompts.counterfactual.answers == prompts.distractors
    assert prompts.counterfactual.distractors == prompts.answers
    assert ioi_prompts(pocket, 10, corruption="ABC").counterfactual.answers == ()
    fresh = ioi_prompts(pocket, 10, corruption="IO->RAND")
    assert fresh.counterfactual.answers == tuple(f" {name}" for name in said(pocket, fresh.counterfactual, "IO"))


def test_names_of_several_tokens_are_refused_by_name_or_dropped_and_counted(pocket):
    names = [*vocabulary().names[:6], "Bartholomew", "Xanthippe"]
    with pytest.raises(BadInput, match=r"2 of 8 names .* Bartholomew, Xanthippe"):
        ioi_prompts(pocket, 4, names=names)
    prompts = ioi_prompts(pocket, 40, names=names, drop=True)
    used = {row["io"] for row in prompts.metadata} | {row["subject"] for row in prompts.metadata}
    assert used <= set(names[:6])
    assert {row["dropped_words"] for row in prompts.metadata} == {2}
    with pytest.raises(BadInput, match="3 names are one token .* at least 5"):
        ioi_prompts(pocket, 4, names=names[3:], drop=True)


def test_bundled_words_that_do_not_fit_a_tokenizer_are_left_out(gpt2):
    prompts = ioi_prompts(gpt2, 200)
    assert {row["dropped_words"] for row in prompts.metadata} != {0}
    assert {len(tokens) for tokens in prompts.counterfactual.distractor_tokens} == {1}


def test_a_tokenizer_without_whole_names_is_refused(byte_level):
    with pytest.raises(BadInput, match=r"0 names are one token .*\(Maximilian, Wilhelmina"):
        ioi_prompts(byte_level, 4, names=["Maximilian", "Wilhelmina", "Bartholomew"], drop=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"order": "BAAB"}, "no order 'BAAB'"),
        ({"style": "short"}, "no style 'short'"),
        ({"corruption": "S2->S1"}, "no corruption 'S2->S1'; did you mean"),
    ],
)
def test_unknown_choices_are_refused(pocket, change, message):
    with pytest.raises(BadInput, match=message):
        ioi_prompts(pocket, **change)


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_the_bundled_model_names_the_indirect_object_in_its_own_sentences(order):
    model = interp.load("pocket")
    prompts = ioi_prompts(model.tokenizer, 100, seed=11, order=order, style="pocket")
    wanted = torch.tensor([answer for (answer,) in prompts.answer_tokens])
    right = model.run(prompts).logits.argmax(-1) == wanted
    assert right.float().mean() >= 0.9
    turned = model.run(prompts.counterfactual).logits.argmax(-1) == wanted
    assert turned.float().mean() <= 0.1
