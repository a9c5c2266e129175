"""PromptSet: tokens as the model reads them, spans that cover exactly their characters, answers in context."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from interp.errors import BadInput, UnreadableFile, UnwritableOutput
from interp.tasks.prompts import PromptSet

TEXT = "When Mary and John went to the shop, John gave the café key 🗝️ to"


@pytest.fixture
def prompts(byte_level: PreTrainedTokenizerBase) -> PromptSet:
    texts = ["X gave Y", "Y gave Z"]
    return PromptSet.build(
        byte_level,
        texts,
        [" the key", " a ring"],
        distractors=[" the ring", " a key"],
        spans={"giver": [(0, 1), (0, 1)]},
        counterfactual=PromptSet.build(byte_level, ["Q gave Y", "Y gave Q"]),
        metadata=[{"cell": [1, 2], "name": "Zoë\u2028"}, {"cell": [3, 4], "name": "x"}],
    )


def test_tokens_are_the_tokenizers_own_without_special_tokens_at_the_end(
    byte_level: PreTrainedTokenizerBase, bracketing: PreTrainedTokenizerBase
) -> None:
    assert list(PromptSet.build(byte_level, [TEXT]).tokens[0]) == byte_level(TEXT)["input_ids"]
    ids = bracketing(TEXT)["input_ids"]
    assert ids[-1] == bracketing.eos_token_id
    assert list(PromptSet.build(bracketing, [TEXT]).tokens[0]) == ids[:-1]
    bare = PromptSet.build(bracketing, [TEXT], special_tokens=False)
    assert list(bare.tokens[0]) == ids[1:-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab M.\n,é🗝7"), min_size=1, max_size=40), data=st.data())
def test_a_span_is_the_tokens_of_its_characters(
    tokenizer: PreTrainedTokenizerBase, text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    coded = tokenizer(text)
    touched = {coded.char_to_token(i) for i in range(start, end)} - {None}
    # One character can be several tokens, and the tokenizer names the first of them.
    last_character = [i for i, o in enumerate(coded.encodings[0].offsets) if o[0] < end and o[1] >= end]
    span = PromptSet.build(tokenizer, [text], spans={"here": [(start, end)]}).spans["here"][0]
    assert span == (min(touched), max(touched | set(last_character)) + 1)


def test_a_token_that_straddles_the_border_belongs_to_the_span(byte_level: PreTrainedTokenizerBase) -> None:
    text = "The phone number"
    inside = text.index("hone")
    span = PromptSet.build(byte_level, [text], spans={"part": [(inside, inside + 4)]}).spans["part"][0]
    assert byte_level.decode(byte_level(text)["input_ids"][slice(*span)]) == " phone"


def test_a_span_without_a_token_is_refused(stories: PreTrainedTokenizerBase) -> None:
    text = "The key "  # this tokenizer drops a space at the end
    with pytest.raises(BadInput, match=r"span 'gap' of prompt 0, ' ', touches no token"):
        PromptSet.build(stories, [text], spans={"gap": [(7, 8)]})


@pytest.mark.parametrize("span", [(3, 3), (-1, 2), (0, len(TEXT) + 1)])
def test_a_span_outside_its_text_is_refused(byte_level: PreTrainedTokenizerBase, span: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=f"the prompt has {len(TEXT)}"):
        PromptSet.build(byte_level, [TEXT], spans={"x": [span]})


def test_answer_tokens_are_those_that_follow_the_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    answers = [" Mary", " the phone number 40716"]
    prompts = PromptSet.build(tokenizer, [TEXT, TEXT], answers)
    for tokens, answer, answer_tokens in zip(prompts.tokens, answers, prompts.answer_tokens, strict=True):
        whole = [i for i in tokenizer(TEXT + answer)["input_ids"] if i != tokenizer.eos_token_id]
        assert list(tokens + answer_tokens) == whole


def test_an_answer_that_changes_the_prompts_tokens_is_refused_with_the_words(gpt2: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match=r"answer of prompt 1 is 'Paris'.*' Paris'.*Move the space"):
        PromptSet.build(gpt2, ["It is", "It is in "], [" Rome", "Paris"])
    with pytest.raises(BadInput, match=r"distractor of prompt 0 is 'ine'.*end ' mach'.*' machine'"):
        PromptSet.build(gpt2, ["the mach"], distractors=["ine"])


def test_an_answer_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match="adds no token"):
        PromptSet.build(tokenizer, [TEXT], [""])


def test_a_prompt_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadInput, match="Prompt 1 is '', which has no tokens"):
        PromptSet.build(tokenizer, [TEXT, ""])


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(BadInput, match="ByT5Tokenizer.*fast tokenizer"):
        PromptSet.build(ByT5Tokenizer(), [TEXT])


def test_a_counterfactual_of_another_length_is_refused(byte_level: PreTrainedTokenizerBase) -> None:
    twin = PromptSet.build(byte_level, ["Mary gave John", "Mary gave Wolfgang"])
    with pytest.raises(BadInput, match="Prompt 1 has .* 'Mary gave Paul' / 'Mary gave Wolfgang'"):
        PromptSet.build(byte_level, ["Anna gave John", "Mary gave Paul"], counterfactual=twin)
    with pytest.raises(BadInput, match="2 prompts for 1"):
        PromptSet.build(byte_level, ["Anna gave John"], counterfactual=twin)


@pytest.mark.parametrize("column", ["answers", "distractors", "metadata"])
def test_a_column_of_another_length_is_refused(byte_level: PreTrainedTokenizerBase, column: str) -> None:
    with pytest.raises(BadInput, match=f"There are 1 {column} for 2 prompts"):
        PromptSet.build(byte_level, [TEXT, TEXT], **{column: [{}] if column == "metadata" else [" x"]})


def test_a_span_outside_the_tokens_is_refused() -> None:
    with pytest.raises(BadInput, match="tokens 1 to 4; the prompt has tokens 0 to 3"):
        PromptSet(("a b c",), ((1, 2, 3),), spans={"x": ((1, 4),)})


def test_selection_takes_everything_along(prompts: PromptSet) -> None:
    second = prompts[1]
    assert second == prompts.select([1]) == prompts[1:]
    assert (len(second), second.answers, second.distractors) == (1, (" a ring",), (" a key",))
    assert second.tokens == prompts.tokens[1:]
    assert second.counterfactual is not None
    assert second.counterfactual.texts == ("Y gave Q",)
    assert prompts.select([1, 0]).select([1, 0]) == prompts
    assert prompts[-1] == second
    with pytest.raises(BadInput, match="no prompt 2: this set has 2"):
        prompts.select([0, 2])


def test_a_file_gives_back_the_same_set(prompts: PromptSet, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    prompts.to_jsonl(path)
    again = PromptSet.from_jsonl(path)
    assert again == prompts
    assert again.hash == prompts.hash
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_the_hash_depends_on_every_field(prompts: PromptSet) -> None:
    others = [prompts[:1], prompts.select([1, 0])]
    for name in ("answers", "distractors", "metadata", "texts", "answer_tokens", "distractor_tokens", "tokens"):
        others.append(dataclasses.replace(prompts, **{name: getattr(prompts, name)[::-1]}))
    others.append(dataclasses.replace(prompts, spans={"taker": prompts.spans["giver"]}))
    others.append(dataclasses.replace(prompts, counterfactual=None))
    hashes = {other.hash for other in others} | {prompts.hash}
    assert len(hashes) == len(others) + 1


def test_ones_own_file_needs_only_texts_and_counts_characters(
    byte_level: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    rows = [
        {"text": "X gave Y", "answer": " the key", "spans": {"giver": [0, 1]}, "counterfactual": {"text": t}}
        for t in ("Q gave Y", "Z gave Y")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    twin = PromptSet.build(byte_level, ["Q gave Y", "Z gave Y"])
    expected = PromptSet.build(
        byte_level,
        ["X gave Y"] * 2,
        [" the key"] * 2,
        spans={"giver": [(0, 1)] * 2},
        counterfactual=twin,
    )
    assert PromptSet.from_jsonl(path, byte_level) == expected
    with pytest.raises(BadInput, match="which tokenizer"):
        PromptSet.from_jsonl(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no prompts"),
        ('{"text": "a"}\n{"text": ', "Line 2 of .* is not JSON"),
        ("[1]", 'Prompt 1 of .* is not an object with a "text"'),
        ('{"text": 3}', "text is 3, not a str"),
        ('{"text": "a", "awnser": "b"}', "unknown field 'awnser'; did you mean 'answer'"),
        ('{"text": "a"}\n{"text": "a", "answer": "b"}', "Prompt 2 .* do not both have answer"),
        ('{"text": "a", "spans": {"x": [1]}}', "span or token list"),
        ('{"text": "a", "tokens": ["x"]}', "span or token list"),
        ('{"text": "a", "tokens": [1], "counterfactual": {}}', 'not an object with a "text"'),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(UnreadableFile, match=complaint):
        PromptSet.from_jsonl(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="absent.jsonl"):
        PromptSet.from_jsonl(tmp_path / "absent.jsonl")


def test_nothing_is_written_where_something_cannot_be(prompts: PromptSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        prompts.to_jsonl(tmp_path / "file" / "prompts.jsonl")
    with pytest.raises(BadInput, match="plain JSON"):
        dataclasses.replace(prompts, metadata=({"x": {1}}, {})).to_jsonl(tmp_path / "set.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
