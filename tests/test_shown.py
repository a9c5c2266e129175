"""What objects show of themselves in a notebook: what they are in short, and text only ever as text."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from apps.explorer.results import result_of
from interp.attention_summary import attention_summary
from interp.logit_lens import logit_lens
from interp.next_token import next_token
from interp.runs import load_run, run_folders
from interp.shipped import samples_folder
from interp.skills.mask import GraftMask
from interp.tables import html_table, shortened
from interp.tasks.classification import Classification
from interp.tasks.classified import Example
from interp.tasks.concepts import concept
from interp.tasks.labelled import LabelledTexts
from probes.ast.corpus import generated_functions, split_by_file
from probes.reading import Reading
from probes.traces import Experience, Response
from probes.verification import Verification
from probes.vsa.splits import Split as RowSplit
from tests.families import build, prompts, word_tokenizer

HOSTILE = "<script>alert(1)</script> & <b>bold</b>"
OWN_TAGS = {"p", "b", "h4", "table", "tr", "th", "td"}


class Page(HTMLParser):
    """The tags and the texts of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(thing: object) -> Page:
    shown = Page(thing._repr_html_())  # type: ignore[attr-defined]
    assert shown.tags <= OWN_TAGS
    return shown


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(build("llama"), word_tokenizer())


def test_a_table_shows_text_as_text_and_numbers_in_short() -> None:
    frame = pd.DataFrame({HOSTILE: [HOSTILE, "b", "c"], "score": [0.123456, 2.0, float("nan")], "n": [12345, 2, 3]})
    shown = Page(html_table(frame, most=2))
    assert shown.tags <= OWN_TAGS
    assert shown.texts == [HOSTILE, "score", "n", HOSTILE, "0.1235", "12345", "b", "2", "2", "… and 1 more"]


def test_a_long_text_loses_its_middle() -> None:
    assert Page(html_table(pd.DataFrame({"text": ["a" * 1000]}))).texts[1] == shortened("a" * 1000)
    assert shortened("short", 20) == "short"
    assert shortened("a" * 100 + "z" * 100, 43) == "a" * 20 + " … " + "z" * 20


SAMPLES = run_folders(samples_folder())


@pytest.mark.parametrize("sample", SAMPLES, ids=[path.name for path in SAMPLES])
def test_every_result_says_in_one_line_what_it_is_and_the_name_of_its_model_is_text(sample: Path, tmp_path) -> None:
    folder = shutil.copytree(sample, tmp_path / sample.name)
    record = json.loads((folder / "run.json").read_text())
    record["model"]["name"] = HOSTILE
    (folder / "run.json").write_text(json.dumps(record))
    result = result_of(load_run(folder))
    shown = page(result)
    said = repr(result)
    assert shown.texts[0] == said
    assert "table" in shown.tags
    assert said.startswith(f"{type(result).__name__}(")
    assert len(said) < 400
    assert "\n" not in said


def test_tokens_and_texts_in_results_are_text(model: interp.Model) -> None:
    prompt = prompts(1, 3)
    said = next_token(model, prompt)
    lens = logit_lens(model, prompt)
    for result in (
        replace(said, said=(HOSTILE,) * len(said.said)),
        replace(lens, said=dict.fromkeys(lens.said, HOSTILE)),
        Reading(pd.DataFrame({"class": [HOSTILE], "probability": [0.5]}), HOSTILE, (), -1, HOSTILE, HOSTILE),
    ):
        assert HOSTILE in page(result).texts[1:]
    about = {"name": HOSTILE}
    assert HOSTILE in page(replace(attention_summary(model, prompt), model=about)).texts[0]


def test_a_model_shows_its_sizes(model: interp.Model) -> None:
    shown = page(model).texts
    assert f"{model.spec.parameters:,}" in shown[1]
    assert shown[shown.index("context") + 1 :] == ["2", "4", "2", "32", "64", "96", "199", "96"]


def test_a_trace_shows_what_was_read_and_its_shape(model: interp.Model) -> None:
    trace = model.run(prompts(3, 7), read=["z.1", "attention_stats.0"], logits="last", positions=-1)
    shown = page(trace).texts
    assert "1 of 7 positions" in shown[0]
    assert shown[shown.index("z.1") + 2] == "3 x 1 x 4 x 32"
    assert "argmax 3 x 4 x 1" in shown[shown.index("attention_stats.0") + 2]
    assert shown[shown.index("logits") + 2] == "3 x 199"
    assert "every position" in page(model.run(prompts(1, 3), read="embed")).texts[0]


def test_prompts_show_texts_answers_and_where_their_roles_are() -> None:
    twin = interp.PromptSet((f"twin {HOSTILE}",) * 6, ((1, 2, 3),) * 6)
    spans = {"end": ((2, 3),) * 6, "needle": ((0, 2),) * 6}
    answers = {"answers": (HOSTILE,) * 6, "answer_tokens": ((4,),) * 6}
    shown = page(interp.PromptSet((HOSTILE,) * 6, ((1, 2, 3),) * 6, **answers, spans=spans, counterfactual=twin)).texts
    assert shown[0] == "PromptSet(6 prompts of 3 tokens; spans end, needle; with a counterfactual)"
    assert shown[7:13] == [HOSTILE, "3", HOSTILE, "2", "0–1", f"twin {HOSTILE}"]
    assert shown[-1] == "… and 2 more"


def test_a_mask_shows_its_best_heads() -> None:
    mask = interp.HeadMask(np.array([[0.25, 0.5], [1.0, 0.0]]), model=HOSTILE)
    assert page(mask).texts[1:7] == ["layer", "head", "score", "1", "0", "1"]
    shown = page(mask.top(1)).texts
    assert HOSTILE in shown[0]
    assert shown[1:9] == ["layer", "head", "score", "selected", "1", "0", "1", "True"]
    assert shown[12] == "False"


def test_a_description_shows_every_site_in_full(model: interp.Model) -> None:
    described = model.describe()
    shown = page(described).texts
    assert set(described.frame.site) <= set(shown)
    assert set(described.frame.meaning) <= set(shown)


def test_an_edit_says_what_it_does_without_its_tensors(model: interp.Model) -> None:
    donor = model.run(prompts(2, 4), read="z.1")
    edit = interp.patch("z.1.3", donor).at(positions=-1, rows=[0, 1])
    assert repr(edit) == "Edit(patch(z.1.3) at -1, prompts 0, 1)"


def test_data_to_read_says_how_much_of_what_it_holds() -> None:
    texts = LabelledTexts(HOSTILE, (HOSTILE,) * 8, ("a", "b") * 4, groups=("g",) * 8)
    assert page(texts).texts[:4] == [repr(texts), "text", "label", "group"]
    assert page(texts).texts[4] == HOSTILE
    assert page(texts).texts[-1] == "… and 2 more"
    assert repr(concept("country")) == "Concept(country, factual: second half / first half)"

    spoken = Classification.build(
        word_tokenizer(),
        {"train": [Example("w5", "w3"), Example("w6", "w4")], "test": [Example("w7", "w3")]},
        name=HOSTILE,
        template="{text}",
        words={"w3": "w3", "w4": "w4"},
    )
    assert page(spoken).texts[1:9] == ["split", "examples", "the first", "answer", "train", "2", "w5", " w3"]
    assert repr(spoken["train"]).startswith("Examples(PromptSet(2 prompts")


def test_splits_say_how_large_their_parts_are() -> None:
    functions = split_by_file(generated_functions(60))
    sizes = [len(functions.train), len(functions.valid), len(functions.test)]
    assert sum(sizes) == 60
    assert repr(functions) == "Split(python of the standard library: {} train, {} valid, {} test)".format(*sizes)
    assert "\n" not in repr(functions.test[0])
    assert [int(page(functions).texts[i]) for i in (6, 10, 14)] == sizes
    rows = RowSplit(np.arange(900), np.arange(90), np.arange(80), dropped=7)
    assert repr(rows) == "Split(900 training, 90 validation, 80 test prompts; 7 dropped)"


def test_experience_and_what_is_learned_from_it_show_their_traces() -> None:
    asked = [Response(HOSTILE, (1,), (2, 3), correct=True), Response(HOSTILE, (1,), (4,), correct=False)]
    unchecked = Experience((*asked, Response("other", (5,), (6,))))
    assert page(unchecked).texts[4:] == [HOSTILE, "2", "0.5", "other", "1", "<NA>"]
    scored = Verification.load(samples_folder() / "clue-verification").scored
    assert page(scored).texts[0] == repr(scored)
    assert page(scored).texts[1:6] == ["question", "answer", "correct", "to_success", "to_failure"]
    layers = page(scored.centroids)
    assert layers.texts[1:5] == ["layer", "gap", "spread of right", "spread of wrong"]
    assert layers.texts[5::4] == [str(layer) for layer in range(4)]


def test_a_graft_mask_shows_its_shares_by_module_and_layer() -> None:
    shapes = {f"blocks.{layer}.<b>{kind}": (4, 5) for layer in (0, 1) for kind in ("q", "k")}
    mask = GraftMask({"blocks.1.<b>k": torch.arange(5)}, shapes, "pre", "ft")
    shown = page(mask).texts
    assert shown[0] == "GraftMask(5 of 80 parameters, 6.250%)"
    assert [shown[i] for i in (8, 9, 10, 11)] == ["<b>q", "0", "40", "0"]
    assert [shown[shown.index("layer") + i] for i in (14, 15, 17)] == ["1", "5", "1"]
