"""Contexts that contradict: items with both answers, prompts of both intents, what is refused and what is counted."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from interp.errors import BadInput, UnreadableFile
from interp.pocket.skills.facts import CONTEXTS, both_intents, context_item, query
from interp.tasks.context_prior import (
    COLUMNS,
    RELATIONS,
    ContextItem,
    ContextItems,
    PromptForm,
    arithmetic_items,
    context_prompts,
    fact_items,
    read_context_csv,
    usable,
    without_collisions,
)
from interp.tasks.vocabulary import vocabulary

ITEM = ContextItem("Which country is Graz in?", "Graz lies in Japan.", "Austria", "Japan")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def test_prompts_of_an_item_follow_each_other_and_swap_their_answers(pocket: Any) -> None:
    prompts = context_prompts(pocket, ContextItems((ITEM,)), PromptForm("instruction"))
    assert prompts.texts[0] == (
        "Answer the following query considering the provided context. Answer with only one word.\n\n"
        "Context: Graz lies in Japan.\nInstruction: Only consider the context in answering the query.\n"
        "Query: Which country is Graz in?\nAnswer:"
    )
    assert "Instruction: Ignore the context in answering the query." in prompts.texts[1]
    assert prompts.answers == (" Japan", " Austria")
    assert prompts.distractors == (" Austria", " Japan")
    assert [row["intent"] for row in prompts.metadata] == ["context", "prior"]


def test_the_intent_can_be_a_weight_or_left_out(pocket: Any) -> None:
    weighted = context_prompts(pocket, ContextItems((ITEM,)), PromptForm("weight"))
    assert ["Context weight: 1.00" in weighted.texts[0], "Context weight: 0.00" in weighted.texts[1]] == [True, True]
    silent = context_prompts(pocket, ContextItems((ITEM,)), PromptForm("weight").silent)
    assert silent.texts[0] == silent.texts[1]
    assert "weight" not in silent.texts[0]
    assert silent.answers == weighted.answers


def test_the_bundled_models_wording_is_what_it_was_taught(pocket: Any) -> None:
    from random import Random

    taught = context_item(Random(0), "train")
    about = taught.about
    context = CONTEXTS[about["statement"]].format(city=about["city"], country=about["context"])
    asked = query(about["city"]).removeprefix("Query: ").removesuffix("\nAnswer:")
    item = ContextItem(asked, context, about["memory"], about["context"])
    prompts = context_prompts(pocket, ContextItems((item,)), PromptForm(wording="pocket"))
    assert prompts.texts == tuple(each.prompt for each in both_intents(taught))
    assert prompts.answers == tuple(each.answer for each in both_intents(taught))
    assert RELATIONS["country"].contexts == tuple(c.replace("city}", "subject}").replace("country}", "answer}")
                                                  for c in CONTEXTS)  # fmt: skip


def test_demonstrations_alternate_intents_and_are_never_asked(pocket: Any) -> None:
    shown = fact_items(2, seed=5)
    prompts = context_prompts(pocket, ContextItems((ITEM,)), PromptForm(demonstrations=shown.items))
    first, second = (prompts.texts[0].index(item.query) for item in shown)
    assert first < second < prompts.texts[0].index(ITEM.query)
    assert f"Answer: {shown[0].context_answer}\n" in prompts.texts[0]
    assert f"Answer: {shown[1].prior_answer}\n" in prompts.texts[0]
    with pytest.raises(BadInput, match="2 demonstrations are among the items"):
        context_prompts(pocket, shown, PromptForm(demonstrations=shown.items))


@pytest.mark.parametrize("template", [TEMPLATE, NO_SYSTEM])
def test_a_chat_goes_through_the_tokenizers_template(byte_level: Any, template: str) -> None:
    import copy

    tokenizer = copy.deepcopy(byte_level)
    tokenizer.chat_template = template
    shown = fact_items(2, seed=5)
    prompts = context_prompts(tokenizer, ContextItems((ITEM,)), PromptForm(demonstrations=shown.items))
    text = prompts.texts[0]
    assert text.endswith("Query: Which country is Graz in?</><a>")
    assert f"<assistant>{shown[0].context_answer}</>" in text
    assert text.count("Answer the following query") == 1
    assert text.startswith("<system>") == (template == TEMPLATE)
    assert prompts.answers == ("Japan", "Austria")
    plain = context_prompts(tokenizer, ContextItems((ITEM,)), PromptForm(chat=False))
    assert plain.texts[0].endswith("Answer:")
    with pytest.raises(BadInput, match="chat=False"):
        context_prompts(byte_level, ContextItems((ITEM,)), PromptForm(chat=True))


def test_items_that_cannot_be_used_are_refused_with_what_is_wrong() -> None:
    same = ContextItem("q?", "It is Rome.", "rome", "Rome")
    absent = ContextItem("q?", "It is there.", "Paris", "Rome")
    with pytest.raises(
        BadInput, match=r"2 of 3 items cannot be used \(1 answer not in the context, 1 answers coincide"
    ):
        ContextItems((ITEM, same, absent))
    kept = usable([ITEM, same, absent, ITEM])
    assert kept.items == (ITEM,)
    assert kept.lost == {"answers coincide": 1, "answer not in the context": 1, "repeated": 1}
    with pytest.raises(BadInput, match="no items are left: 1 answers coincide"):
        usable([same])
    with pytest.raises(BadInput, match="no items are left: there were none"):
        ContextItems(())


def test_answers_that_begin_with_the_same_token_are_dropped_and_counted(pocket: Any) -> None:
    digits = ContextItem("What is 3 + 9?", "3 + 9 = 15", "12", "15")  # the bundled tokenizer splits at digits
    kept = without_collisions(pocket, ContextItems((ITEM, digits)), PromptForm())
    assert kept.items == (ITEM,)
    assert kept.lost == {"same first token": 1}
    assert "1 same first token" in repr(kept)
    with pytest.raises(BadInput, match="no items are left: 1 same first token"):
        without_collisions(pocket, ContextItems((digits,)), PromptForm())


def test_facts_are_drawn_without_repetition_and_by_seed() -> None:
    items = fact_items(300, seed=1, relations=("country", "capital", "language"))
    truth = {*vocabulary().city_country, *vocabulary().relations["capital"], *vocabulary().relations["language"]}
    for item in items:
        assert item.flaw is None
        assert any(subject in item.query and item.prior_answer == answer for subject, answer in truth)
    assert len({(item.query, item.context_answer) for item in items}) == 300
    assert items.hash == fact_items(300, seed=1, relations=("country", "capital", "language")).hash
    assert items.hash != fact_items(300, seed=2, relations=("country", "capital", "language")).hash
    with pytest.raises(BadInput, match="1 to 1984 can be had"):
        fact_items(2000)
    with pytest.raises(BadInput, match="did you mean 'capital'"):
        fact_items(3, relations=("capitol",))


def test_arithmetic_overrides_a_part_of_the_expression() -> None:
    items = arithmetic_items(200, seed=0)
    for item in items:
        whole = item.query.removeprefix("What is ").removesuffix("?")
        part, value = item.context.split(" = ")
        assert eval(whole) == int(item.prior_answer)
        replaced = whole.replace(f"({part})", value) if item.derived else whole.replace(part, value)
        assert eval(replaced) == int(item.context_answer) != int(item.prior_answer)
        assert 0 <= int(item.context_answer) <= 99
    assert 50 < sum(item.derived for item in items) < 180
    with pytest.raises(BadInput, match="at least 1"):
        arithmetic_items(0)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "subject"])
        writer.writeheader()
        writer.writerows({"subject": "ignored", **row} for row in rows)
    return path


def rows_of(item: ContextItem) -> list[dict[str, str]]:
    both = {"query": item.query, "context": item.context, "ctx_answer": item.context_answer,
            "prior_answer": item.prior_answer}  # fmt: skip
    return [
        {**both, "weight_context": "1.0", "answer": item.context_answer},
        {**both, "weight_context": "0.0", "answer": item.prior_answer},
    ]


def test_the_authors_columns_are_read_one_item_for_both_rows(tmp_path: Path) -> None:
    other = ContextItem("Where, then?", "They say: Graz,\nin Peru.", "Austria", "Peru")
    path = write(tmp_path / "items.csv", rows_of(ITEM) + rows_of(other))
    assert read_context_csv(path).items == (ITEM, other)


def test_files_that_do_not_fit_are_refused_by_row(tmp_path: Path) -> None:
    good = rows_of(ITEM)
    with pytest.raises(UnreadableFile, match="row 2 .*should be 'Austria', and is 'Japan'"):
        read_context_csv(write(tmp_path / "a.csv", [good[0], {**good[1], "answer": "Japan"}]))
    with pytest.raises(UnreadableFile, match="row 1 .*weight_context is '0.5'"):
        read_context_csv(write(tmp_path / "b.csv", [{**good[0], "weight_context": "0.5"}]))
    (tmp_path / "c.csv").write_text("context,query\na,b\n")
    with pytest.raises(UnreadableFile, match="lacks the columns weight_context, answer"):
        read_context_csv(tmp_path / "c.csv")
    unstated = ContextItem("Where?", "Nowhere.", "Austria", "Peru")
    path = write(tmp_path / "d.csv", good + rows_of(unstated))
    with pytest.raises(BadInput, match="1 of 2 items cannot be used"):
        read_context_csv(path)
    assert read_context_csv(path, drop=True).lost == {"answer not in the context": 1}
    assert len(read_context_csv(path, derived=True)) == 2


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(BadInput, match="did you mean 'instruction'"):
        PromptForm("instructions")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="valid: paper, pocket"):
        PromptForm(wording="mine")
