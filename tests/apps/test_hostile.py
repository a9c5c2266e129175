"""Runs that are broken, foreign or elsewhere, and prompts meant to harm: each is a sentence, and the app goes on."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pandas as pd
import pytest

from apps.explorer.catalogue import chosen, entries
from apps.explorer.head_metrics import metrics_of
from apps.explorer.results import figures_of
from apps.explorer.settings import samples_folder
from interp.errors import BadInput, UnreadableFile, WorkbenchError
from tests.apps.reading import charts, numbers, said

safetensors = pytest.importorskip("safetensors.numpy")


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


ATTACKS = {
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
    for page in ("runs", "heads") if attack not in THROUGHOUT else PAGES:
        test = draw(page, model="none", **({"run": "runs/broken"} if page == "runs" else {}))
        assert not test.exception, (page, test.exception[0].value)
        if page in ("heads", "needles", "patching"):
            assert charts(test), page  # the samples are still there
        if page == "runs":
            wanted = ATTACKS[attack]
            shown = said(test).replace("\\", "")
            assert wanted is None or wanted in shown, shown
    if attack is impossible_heads:
        with pytest.raises(UnreadableFile, match="heads beyond 4 layers of 8"):
            metrics_of(chosen(entries({"runs": own}), "runs/broken"), "runs/broken")


@pytest.mark.parametrize("kind", [path.name for path in sorted(samples_folder().iterdir()) if path.is_dir()])
@pytest.mark.parametrize("seed", range(3))
def test_scrambled_arrays_of_every_kind_raise_nothing_but_our_errors(own, kind, seed):
    folder = copied(own, of=kind)
    rng = np.random.default_rng(seed)
    arrays = safetensors.load_file(folder / "arrays.safetensors")
    shapes = ((), (0,), (1,), (2, 3), (4, 8), (1, 1, 1), (2, 4, 4, 8))
    scrambled = {name: rng.normal(size=shapes[rng.integers(len(shapes))]) for name in arrays}
    (folder / "arrays.safetensors").write_bytes(safetensors.save(scrambled))
    run = chosen(entries({"runs": own}), "runs/broken")
    if kind == "ioi-circuit":
        assert figures_of(run) == {}
        return
    with pytest.raises(WorkbenchError):
        figures_of(run)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "runs/../../outside", "samples/../../secret", "", "x" * 5000]
)
def test_a_name_is_never_a_path(own, name):
    copied(own.parent, "outside")
    with pytest.raises(BadInput, match="there is no run"):
        chosen(entries({"runs": own}), name)


@pytest.mark.parametrize(("page", "key"), [("runs", "run"), ("runs", "other"), ("export", "export"), ("heads", "a")])
def test_a_path_in_the_address_is_refused(draw, page, key):
    test = draw(page, model="none", **{key: "../../../etc/passwd"})
    assert not test.exception
    assert "There is no run" in test.warning[0].value
    assert "root:" not in said(test)
    assert "etc/passwd" not in {box.value for box in test.selectbox}


@pytest.mark.parametrize("head", ["99.99", "-1.0", "<script>", "2.1.3", "2", "٣.١"])
def test_a_head_that_is_none_is_refused(draw, head):
    test = draw("heads", model="none", head=head)
    assert not test.exception
    assert test.selectbox(key="head").value == "0.0"


SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)> ![](http://evil.test/x.png) :red[x] $x$"


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


def test_two_sessions_at_once_see_their_own_prompts(draw):
    prompts = ["The first prompt speaks of Alice and", "Another prompt, about Bob and"]
    alone = [draw("model", prompt=prompt) for prompt in prompts]
    wanted = [numbers(charts(test)[0]["data"][0]["x"]) for test in alone]
    found: dict[int, list[float]] = {}

    def ask(i: int) -> None:
        from apps.explorer import live

        for _ in range(5):
            live._said_next.clear()
            found[i] = np.exp(live.said_next(live.model(), prompts[i]).log_probabilities).tolist()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        np.testing.assert_allclose(found[i], wanted[i], rtol=1e-5)
