"""Runs that are broken, foreign or elsewhere, and prompts meant to harm: each is a sentence, and the app goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import streamlit as st

from apps.explorer import app
from apps.explorer.catalogue import chosen, entries
from apps.explorer.head_metrics import metrics_of
from apps.explorer.results import figures_of
from apps.explorer.settings import samples_folder
from interp.errors import BadInput, UnreadableFile, WorkbenchError
from tests.apps.reading import charts, said

safetensors = pytest.importorskip("safetensors.numpy")


SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)> ![](http://evil.test/x.png) :red[x] $x$"


def copied(own, name="broken", of="retrieval"):
    shutil.copytree(samples_folder() / of, own / name)
    return own / name


def edited(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | changes))


def truncated_table(own):
    file = copied(own) / "table.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def wrong_shapes(own):
    (copied(own) / "arrays.safetensors").write_bytes(safetensors.save({"samples": np.zeros((3, 7))}))


def no_array(own):
    (copied(own) / "arrays.safetensors").write_bytes(safetensors.save({"other": np.zeros(2)}))


def broken_arrays(own):
    (copied(own) / "arrays.safetensors").write_bytes(b"\xff" * 100)


def deep_json(own):
    (copied(own) / "run.json").write_text("[" * 300_000)


def huge_json(own):
    (copied(own) / "run.json").write_text('{"a": "' + "x" * (5 * 2**20) + '"}')


def not_json(own):
    (copied(own) / "run.json").write_bytes(b"\x00\xff")


def foreign_schema(own):
    edited(copied(own), schema="somebody-else/7")


def wrong_types(own):
    edited(copied(own), model=["not", "a", "mapping"])


def foreign_kind(own):
    edited(copied(own), kind="<b>made up</b>")


def impossible_heads(own):
    folder = copied(own)
    frame = pd.read_parquet(folder / "table.parquet")
    frame.assign(layer=frame.layer + 1000).to_parquet(folder / "table.parquet")


def no_model(own):
    edited(copied(own), model={})


def swollen_table(own):
    folder = copied(own)
    pd.DataFrame({"zero": np.zeros(6_000_000, dtype=np.int8)}).to_parquet(folder / "table.parquet")
    assert (folder / "table.parquet").stat().st_size < 2**20


def link_out(own):
    outside = copied(own.parent, "outside")
    (own / "broken").symlink_to(outside)


def linked_file(own):
    folder = copied(own)
    (folder / "table.parquet").unlink()
    (folder / "table.parquet").symlink_to("/etc/passwd")


def pipe(own):
    table = copied(own) / "table.parquet"
    table.unlink()
    os.mkfifo(table)  # whoever reads it waits for ever


def pipe_for_a_run(own):
    (own / "broken").mkdir()
    os.mkfifo(own / "broken" / "run.json")


def nested_parameters(own):
    folder = copied(own)
    deep = '{"a":' * 500 + "1" + "}" * 500
    record = json.loads((folder / "run.json").read_text())
    del record["parameters"]
    (folder / "run.json").write_text(f'{{"parameters": {deep}, {json.dumps(record)[1:]}')


def keys_twice(own):
    file = copied(own) / "run.json"
    file.write_text('{"kind": "somebody\'s", "model": [],' + file.read_text().lstrip()[1:])


def endless_numbers(own):
    edited(copied(own), seed=10**300, parameters={"x": float("inf"), "y": [10**200] * 50, "z": None})


def markup_everywhere(own):
    edited(copied(own), parameters={SCRIPT: SCRIPT}, versions={SCRIPT: SCRIPT}, started=SCRIPT, finished=SCRIPT)


def foreign_columns(own):
    folder = copied(own)
    frame = pd.read_parquet(folder / "table.parquet")
    strange = [[{"a": [1]}], *[[] for _ in range(len(frame) - 1)]]
    frame.assign(**{SCRIPT: SCRIPT, "nested": strange}).to_parquet(folder / "table.parquet")


def truncated_further_table(own):
    file = copied(own, of="needles") / "map.parquet"
    file.write_bytes(file.read_bytes()[:200])


def swollen_further_table(own):
    pd.DataFrame({"zero": np.zeros(6_000_000, dtype=np.int8)}).to_parquet(copied(own, of="needles") / "map.parquet")


def foreign_arrays(own):
    head = json.dumps({"samples": {"dtype": "BF16", "shape": [10**9, 10**9], "data_offsets": [0, 8]}}).encode()
    (copied(own) / "arrays.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 8)


def link_to_nowhere(own):
    copied(own)
    (own / "lost").symlink_to(own / "nowhere")
    (own / "round").symlink_to(own / "round")


def link_below(own):
    folder = copied(own)
    (folder / "more").mkdir()
    (folder / "more" / "passwd").symlink_to("/etc/passwd")


ATTACKS = {
    pipe_for_a_run: "neither a file nor a folder",
    nested_parameters: "nested more than 20 deep",
    keys_twice: None,  # the last of them counts, as everywhere
    endless_numbers: "more than 64 bits",
    markup_everywhere: None,
    foreign_columns: None,
    truncated_further_table: "map.parquet cannot be read",
    swollen_further_table: "6,000,000 rows",
    foreign_arrays: "cannot be read",
    link_to_nowhere: None,
    link_below: "is a link",
    pipe: "neither a file nor a folder",
    truncated_table: "cannot be read",
    wrong_shapes: "has shape (3, 7)",
    no_array: "has no array 'samples'",
    broken_arrays: "cannot be read",
    deep_json: "cannot be read",
    huge_json: "more than the explorer reads",
    not_json: "cannot be read",
    foreign_schema: "has schema 'somebody-else/7'",
    wrong_types: "its model is of type list",
    impossible_heads: None,  # its arrays are whole, so it is still drawn; its table is left out of the Heads page
    foreign_kind: None,
    no_model: "does not say how many layers and heads",
    swollen_table: "6,000,000 rows",
    link_out: "leads out of the runs folder",
    linked_file: "is a link",
}


PAGES = ("runs", "heads", "needles", "patching", "export")
THROUGHOUT = (truncated_table, wrong_shapes, wrong_types)
"""Attacks whose run every page meets."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_bad_run_is_a_sentence_and_every_page_goes_on(draw, own, attack):
    attack(own)
    for page in ("runs",) if attack not in THROUGHOUT else PAGES:
        test = draw(page, model="none", **({"run": "runs/broken"} if page == "runs" else {}))
        assert not test.exception, (page, test.exception[0].value)
        if page in ("heads", "needles", "patching"):
            assert charts(test), page  # the samples are still there
        if page == "runs":
            wanted = ATTACKS[attack]
            shown = said(test).replace("\\", "")
            assert wanted is None or wanted in shown, shown
    for name in entries({"runs": own}):
        with contextlib.suppress(WorkbenchError):
            metrics_of(chosen(entries({"runs": own}), name), name)


def test_a_table_that_names_heads_the_model_does_not_have_is_left_out_of_the_heads(own):
    impossible_heads(own)
    with pytest.raises(UnreadableFile, match="heads beyond 4 layers of 8"):
        metrics_of(chosen(entries({"runs": own}), "runs/broken"), "runs/broken")


@pytest.mark.parametrize("kind", [path.name for path in sorted(samples_folder().iterdir()) if path.is_dir()])
def test_scrambled_arrays_of_every_kind_raise_nothing_but_our_errors(own, kind):
    folder = copied(own, of=kind)
    whole = safetensors.load_file(folder / "arrays.safetensors")
    shapes = ((), (0,), (1,), (2, 3), (4, 8), (1, 1, 1), (2, 4, 4, 8))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scrambled = {name: rng.normal(size=shapes[rng.integers(len(shapes))]) for name in whole}
        (folder / "arrays.safetensors").write_bytes(safetensors.save(scrambled))
        run = chosen(entries({"runs": own}), "runs/broken")
        with contextlib.suppress(WorkbenchError):
            figures_of(run)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "runs/../../outside", "samples/../../secret", "", "x" * 5000]
)
def test_a_name_is_never_a_path(own, name):
    copied(own.parent, "outside")
    with pytest.raises(BadInput, match="there is no run"):
        chosen(entries({"runs": own}), name)


def elements(block):
    """Everything on a drawn page, also within columns, tabs and forms."""
    for child in getattr(block, "children", {}).values():
        yield child
        yield from elements(child)


def bound(test):
    """What of a page's state is in the address: the kind of widget by its key, and the choices of its parts."""
    found = [(element.proto, type(element).__name__) for element in elements(test._tree) if hasattr(element, "proto")]
    return {proto.query_param_key: (proto, kind) for proto, kind in found if getattr(proto, "query_param_key", "")}


OUTSIDE = "../../../etc/passwd"
PARTS = ("show", "view")
"""Keys of what shows one part of a page or another."""


@pytest.fixture(scope="module")
def keys(root):
    """Every short text in the sources of the pages: the keys of the address are among them."""
    sources = [path.read_text() for path in (root / "apps/explorer").rglob("*.py")]
    found = {text for source in sources for text in re.findall(r'"([a-z][a-z_-]{0,20})"', source)}
    return (found | {"a_metric", "b_metric"}) - {"embed", "model", "page", "state"}


@pytest.mark.parametrize("page", sorted(app.PAGES))
def test_a_path_in_the_address_is_refused_wherever_the_address_has_a_say(draw, page, keys):
    test = draw(page, model="none", **dict.fromkeys(keys, OUTSIDE))
    part = next((key for key in PARTS if key in bound(test)), None)
    options = [option.content for option in bound(test)[part][0].options] if part else []
    tests = [draw(page, model="none", **{**dict.fromkeys(keys, OUTSIDE), part: option}) for option in options[1:]]
    for drawn in (test, *tests):
        assert not drawn.exception, drawn.exception[0].value
        assert "root:" not in said(drawn)
        found = bound(drawn)
        assert set(found) <= keys
        assert [key for key, (proto, _) in found.items() if OUTSIDE in getattr(proto, "options", ())] == []
        runs = {"run", "other", "export", "a", "b"} & set(found)
        assert sum("There is no run" in warning.value for warning in drawn.warning) >= len(runs)


@pytest.mark.parametrize("head", ["99.99", "-1.0", "<script>", "2.1.3", "2", "٣.١"])
def test_a_head_that_is_none_is_refused(draw, head):
    test = draw("heads", model="none", head=head)
    assert not test.exception
    assert test.selectbox(key="head").value == "2.0"


@pytest.mark.parametrize("page", ["model", "heads"])
def test_markup_in_a_prompt_is_text(draw, page):
    test = draw(page, prompt=SCRIPT)
    assert not test.exception
    assert not test.error
    html = "".join(element.proto.body for element in test.get("html"))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;" in html
    for figure in charts(test):
        assert "<script" not in json.dumps(figure)


def test_markup_in_a_message_is_text():
    from apps.explorer.show import text

    shown = text("a *b* [c](http://evil.test) ![d](x) :red[e] $f$ <g> `h`\n# i")
    assert shown == (r"a \*b\* \[c\]\(http\:\/\/evil\.test\) \!\[d\]\(x\) \:red\[e\] \$f\$ \<g\> \`h\` \# i")


@pytest.mark.parametrize("page", ["model", "heads"])
@pytest.mark.parametrize("prompt", ["", " ", "word " * 10_000], ids=["empty", "blank", "long"])
def test_prompts_without_end_or_beginning_are_shown_or_refused(draw, page, prompt):
    test = draw(page, state={"prompt": prompt})
    assert not test.exception
    assert bool(test.error) == (len(prompt) > 100)
    for error in test.error:
        assert "2048" in error.value
    assert "prompt" not in test.query_params or len(prompt) < 100


def test_two_pages_drawn_at_once_show_their_own_prompts(draw):
    prompts = ["When Alice and Bob went home, Bob gave the letter to", "The number after 3 is"]
    alone = [charts(draw("model", prompt=prompt))[0]["data"][0]["y"] for prompt in prompts]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            st.cache_resource.clear()
            both = [pool.submit(draw, "model", prompt=prompt) for prompt in prompts]
            tests = [drawn.result() for drawn in both]
            assert not any(test.exception for test in tests)
            assert [charts(test)[0]["data"][0]["y"] for test in tests] == alone


def damaged(file, content=None, **changes):
    def damage(folder):
        path = folder / file
        new = json.dumps(json.loads(path.read_text()) | changes).encode() if content is None else content
        path.write_bytes(new)

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damaged("model.safetensors", b"\xff" * 1000), "header too large"),
        (damaged("config.json", b"[" * 100_000), "recursion"),
        (damaged("config.json", num_hidden_layers=-1), "Error"),
        (damaged("config.json", hidden_size=64), "cannot be loaded"),
        (damaged("config.json", model_type="<script>"), "<script>"),
        (damaged("tokenizer.json", b"{}"), "tokenizer"),
    ],
    ids=["weights", "deep", "layers", "shapes", "markup", "tokenizer"],
)
def test_a_damaged_model_is_a_sentence(draw, own, damage, sentence):
    folder = shutil.copytree(samples_folder().parent / "pocket", own.parent / "model")
    damage(folder)
    test = draw("doctor", model=str(folder))
    assert not test.exception
    assert sentence in test.error[0].value.replace("\\", "")
    assert "<script" not in test.error[0].value.replace("\\<", "")


@pytest.mark.parametrize("run", ["<img src=x onerror=alert(1)>", "**bold** [x](evil)", "a b\tc", "x" * 200])
def test_markup_in_the_name_of_a_run_is_text(draw, own, run):
    copied(own, name=run)
    edited(own / run, schema="other")
    copied(own, name=f"{run[:100]} 2")
    test = draw("runs", model="none")
    assert not test.exception
    assert len(test.warning) == 1
    assert not re.search(r"(?<!\\)[<\[*]", test.warning[0].value)
