"""Mask files: ours lose nothing, the others say what they lose, and readers of other tools get what they expect."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import BadInput, MaskMismatch, UnreadableFile, UnwritableOutput
from interp.heads.formats import FORMATS, read_mask, write_mask
from interp.heads.mask import HeadMask

SPEC = SimpleNamespace(name="pocket", family="llama", layers=3, heads=4, kv_heads=2)
SAMPLES = np.random.default_rng(0).random((5, 3, 4))
QUERY = HeadMask.from_samples(
    SAMPLES,
    method="retrieval-head",
    model="pocket",
    family="llama",
    fingerprint="f00d",
    kv_heads=2,
    metadata={"tests": 5},
).top(4)
KV = QUERY.to_kv("max").quantile(0.5)

numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
plain = st.recursive(st.none() | st.booleans() | st.integers() | numbers | words, lambda x: st.lists(x, max_size=3))


@st.composite
def masks(draw: st.DrawFn, elements: st.SearchStrategy[float] = numbers) -> HeadMask:
    """Any mask: of either kind, with or without selection, samples (of different numbers a head) and names."""
    layers, kv_heads, group, tests = (draw(st.integers(1, 3)) for _ in range(4))
    kind = draw(st.sampled_from(["query", "kv"]))
    shape = (layers, kv_heads * (group if kind == "query" else 1))

    def array(of: st.SearchStrategy[Any], dtype: type) -> np.ndarray:
        size = shape[0] * shape[1]
        return np.array(draw(st.lists(of, min_size=size, max_size=size)), dtype=dtype).reshape(shape)

    samples = None
    if draw(st.booleans()):
        samples = np.stack([array(elements, float) for _ in range(tests)])
        counts = array(st.integers(1, tests), int)
        counts.flat[0] = tests
        samples[np.arange(tests)[:, None, None] >= counts] = np.nan
    return HeadMask(
        array(elements, float),
        kind,
        *draw(st.tuples(words, words, words, words)),
        kv_heads=draw(st.sampled_from([None, kv_heads])),
        selected=array(st.booleans(), bool) if draw(st.booleans()) else None,
        rule=draw(words),
        samples=samples,
        reduction=draw(words),
        metadata=draw(st.dictionaries(words, plain, max_size=3)),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mask"


def losses(mask: HeadMask, path: Path, format: str) -> set[str]:
    return {loss.field for loss in write_mask(mask, path, format)}


@pytest.mark.parametrize("format", ["json", "safetensors"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=masks())
def test_our_formats_give_back_the_very_mask(tmp_path: Path, format: str, mask: HeadMask) -> None:
    path = tmp_path / f"mask.{format}"
    assert write_mask(mask, path, format) == ()
    assert read_mask(path) == mask


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=masks(st.floats(-1e6, 1e6)))
def test_other_formats_give_back_every_field_they_do_not_name_as_lost(tmp_path: Path, mask: HeadMask) -> None:
    for name, format in FORMATS.items():
        if format.kind not in (None, mask.kind) or (name == "razor" and mask.selected is None):
            continue
        path = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        lost = losses(mask, path, name)
        layers, heads = mask.scores.shape
        again = read_mask(path, name, layers=layers, heads=heads)
        assert again.scores.shape == mask.scores.shape
        for field in {field.name for field in dataclasses.fields(HeadMask)} - lost:
            before, after = getattr(mask, field), getattr(again, field)
            if isinstance(before, np.ndarray):
                np.testing.assert_allclose(after, before, rtol=1e-12, atol=0)
            elif before not in (None, "", {}):
                assert after == before or (field == "metadata" and after.items() >= before.items())


NAMES = {"model", "family", "fingerprint", "metadata"}


@pytest.mark.parametrize(
    ("format", "mask", "lost"),
    [
        ("json", QUERY, set()),
        ("safetensors", KV, set()),
        ("retrieval-head", QUERY, NAMES | {"selected", "rule", "kv_heads"}),
        ("headkv", QUERY, NAMES | {"selected", "rule", "kv_heads", "method"}),
        ("qrhead", QUERY, NAMES | {"selected", "rule", "kv_heads", "method", "samples"}),
        ("npy", QUERY, NAMES | {"selected", "rule", "kv_heads", "method", "samples"}),
        ("npy", KV, NAMES | {"kind", "selected", "rule", "kv_heads", "method", "reduction"}),
        ("duo", KV, NAMES - {"metadata"} | {"selected", "rule", "method", "reduction"}),
        ("razor", KV, NAMES | {"scores", "rule", "method", "reduction"}),
    ],
)
def test_each_format_says_what_it_loses(path: Path, format: str, mask: HeadMask, lost: set[str]) -> None:
    assert losses(mask, path, format) == lost
    assert all(loss.why for loss in write_mask(mask, path.with_name("again"), format))


def test_a_loss_of_scores_says_why(path: Path) -> None:
    (scores,) = (loss for loss in write_mask(KV, path, "razor") if loss.field == "scores")
    assert scores.why == "only the selected heads are kept, so they score 1 and the others 0"
    not_the_mean = dataclasses.replace(QUERY, scores=QUERY.scores + 1)
    (scores,) = (loss for loss in write_mask(not_the_mean, path, "retrieval-head") if loss.field == "scores")
    assert "mean of each list" in scores.why


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".npy", ""])
def test_a_file_is_recognised_by_what_it_holds(tmp_path: Path, suffix: str) -> None:
    formats = {
        ".json": ["json", "retrieval-head", "qrhead", "razor"],
        ".safetensors": ["safetensors"],
        ".npy": ["npy"],
        "": ["duo"],
    }[suffix]
    for name in formats:
        mask = KV if FORMATS[name].kind == "kv" else QUERY
        path = tmp_path / f"{name}{suffix}"
        write_mask(mask, path, name)
        assert read_mask(path, like=SPEC) == read_mask(path, name, like=SPEC)


def test_our_json_is_json_to_any_parser(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    samples = SAMPLES.copy()
    samples[3:, 0] = np.nan
    write_mask(HeadMask.from_samples(samples), tmp_path / "mask.json")
    content = json.loads((tmp_path / "mask.json").read_text(), parse_constant=refuse)
    assert [len(head) for layer in content["samples"] for head in layer] == [3] * 4 + [5] * 8


# What other tools read.


def test_retrieval_head_files_are_what_its_consumers_load(path: Path) -> None:
    write_mask(QUERY, path, "retrieval-head")
    head_list = json.loads(path.open().readline())  # the whole object is on the first line
    assert list(head_list)[:2] == ["0-0", "0-1"]
    ranking = sorted(((key, np.mean(scores)) for key, scores in head_list.items()), key=lambda x: x[1], reverse=True)
    assert [tuple(map(int, key.split("-"))) for key, _ in ranking] == QUERY.ranking
    assert len(head_list["2-3"]) == 5


def test_a_mask_without_samples_is_written_as_lists_of_one(path: Path) -> None:
    write_mask(dataclasses.replace(QUERY, samples=None), path, "retrieval-head")
    assert json.loads(path.read_text())["1-2"] == [QUERY.scores[1, 2]]


def test_qrhead_files_are_a_descending_list(path: Path) -> None:
    write_mask(QUERY, path, "qrhead")
    ranking = json.loads(path.read_text())
    layer, head = QUERY.ranking[0]
    assert ranking[0] == [f"{layer}-{head}", QUERY.scores.max()]
    assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    assert len(ranking) == 12


def published_loader(folder: Path) -> tuple[np.ndarray, int, int]:
    """What DuoAttention's own loader does with a folder of patterns, and kvpress with the same files."""
    alpha = np.loadtxt(folder / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    config = json.loads((folder / "config.json").read_text())
    return np.clip(alpha, 0, 1), config["sink_size"], config["recent_size"]


def test_a_duo_folder_is_what_duo_attention_and_kvpress_load(path: Path) -> None:
    rough = dataclasses.replace(KV, scores=KV.scores * 4 - 2, metadata={"sink_size": 4, "lr": 0.02})
    assert "scores" in losses(rough, path, "duo")
    alpha, sink, recent = published_loader(path)
    assert np.array_equal(alpha, np.clip(rough.scores, 0, 1))
    assert (sink, recent) == (4, 256)
    mask = read_mask(path, like=SPEC)
    assert np.array_equal(mask.scores, alpha)
    assert mask.metadata == {"sink_size": 4, "recent_size": 256, "lr": 0.02}
    first = (path / "full_attention_heads.tsv").read_text().splitlines()[0]
    assert first == "\t".join(f"{score:.18e}" for score in rough.scores[0])


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_the_selection_of_a_duo_folder_is_the_published_one(path: Path, sparsity: float) -> None:
    mask = HeadMask(np.random.default_rng(1).random((6, 8)), "kv")
    write_mask(mask, path, "duo")
    alpha, _, _ = published_loader(path)
    noisy = alpha + np.random.default_rng(2).uniform(0, 1e-6, alpha.shape)
    published = noisy >= np.quantile(noisy, sparsity)
    assert np.array_equal(read_mask(path).quantile(sparsity).selected, published)
    # kvpress prunes the lowest share of the heads instead.
    streaming = np.argsort(alpha, axis=None)[: round(alpha.size * sparsity)]
    kept = read_mask(path).top(alpha.size - len(streaming)).selected
    assert kept is not None
    assert sorted(np.flatnonzero(~kept)) == sorted(streaming)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)])
def test_a_single_layer_or_head_keeps_its_shape_in_a_duo_folder(path: Path, shape: tuple[int, int]) -> None:
    write_mask(HeadMask(np.full(shape, 0.5), "kv"), path, "duo")
    assert read_mask(path).scores.shape == shape


def test_razor_files_list_the_heads_of_every_layer(path: Path) -> None:
    write_mask(KV, path, "razor")
    assert KV.selected is not None
    assert json.loads(path.read_text()) == {str(i): np.flatnonzero(row).tolist() for i, row in enumerate(KV.selected)}


def test_razor_files_with_two_probes_select_what_either_selects(tmp_path: Path) -> None:
    path = tmp_path / "razor.json"
    path.write_text(json.dumps({"prefix_matching": {"0": [1], "2": [0]}, "copying": {"0": [0], "2": [0]}}))
    mask = read_mask(path, like=SPEC)
    assert sorted(mask.heads) == [(0, 0), (0, 1), (2, 0)]
    assert mask.rule == "listed under prefix_matching or copying"
    assert np.array_equal(mask.scores, mask.selected)


def test_numpy_files_hold_the_scores_alone(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    write_mask(KV, path, "npy")
    assert np.array_equal(np.load(path, allow_pickle=False), KV.scores)
    assert read_mask(path, like=SPEC).kind == "kv"
    assert read_mask(path).kind == "query"


def test_single_floats_are_read_as_scores(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text('{"0-0": 0.5, "0-1": 1, "1-0": 0, "1-1": 0.25}')
    mask = read_mask(path)
    assert np.array_equal(mask.scores, [[0.5, 1], [0, 0.25]])
    assert mask.samples is None


def test_lists_of_different_lengths_are_each_averaged(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text('{"0-0": [0.5, 0.7, 0.0], "0-1": [1]}')
    mask = read_mask(path)
    assert np.allclose(mask.scores, [[0.4, 1]])
    assert losses(mask, path, "retrieval-head") == set()
    assert json.loads(path.read_text()) == {"0-0": [0.5, 0.7, 0.0], "0-1": [1]}


def test_headkvs_files_are_told_apart_by_their_name(tmp_path: Path) -> None:
    path = tmp_path / "Llama-3-8B_retrieval_reasoning_heads.json"
    write_mask(QUERY, path, "headkv")
    assert read_mask(path).method == "headkv-r2"
    assert read_mask(path, "retrieval-head").method == "retrieval-head"


# What cannot be written.


@pytest.mark.parametrize("format", ["duo", "razor"])
def test_query_heads_are_not_written_as_key_value_heads(path: Path, format: str) -> None:
    with pytest.raises(BadInput, match=f"{format} holds key/value heads .* to_kv"):
        write_mask(QUERY, path, format)
    assert not path.exists()


@pytest.mark.parametrize("format", ["retrieval-head", "headkv", "qrhead"])
def test_key_value_heads_are_not_written_as_query_heads(path: Path, format: str) -> None:
    with pytest.raises(BadInput, match=f"{format} holds query heads"):
        write_mask(KV, path, format)


def test_where_every_query_head_has_its_own_keys_both_are_the_same(path: Path) -> None:
    mask = HeadMask(SAMPLES[0], kv_heads=4)
    assert losses(mask, path, "duo") == {"kind"}
    assert np.array_equal(read_mask(path).scores, mask.scores)


def test_razor_needs_a_selection(path: Path) -> None:
    with pytest.raises(BadInput, match="select some first"):
        write_mask(QUERY.to_kv("max"), path, "razor")


def test_an_unknown_format_is_refused_with_the_known_ones(path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'razor'"):
        write_mask(KV, path, "rasor")
    with pytest.raises(BadInput, match="retrieval-head"):
        read_mask(path, "nonsense")


@pytest.mark.parametrize("format", FORMATS)
def test_an_unwritable_path_is_refused_and_leaves_nothing(tmp_path: Path, format: str) -> None:
    (tmp_path / "file").write_text("")
    mask = KV if FORMATS[format].kind == "kv" else QUERY
    with pytest.raises(UnwritableOutput, match="is a file, not a folder"):
        write_mask(mask, tmp_path / "file" / "mask", format)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_duo_folder_does_not_replace_another_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_text("")
    with pytest.raises(UnwritableOutput):
        write_mask(KV, path, "duo")
    assert [file.name for file in path.parent.rglob("*")] == ["mask", "precious.txt"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    write_mask(QUERY, path)
    with pytest.raises(BadInput):
        write_mask(QUERY.to_kv("max"), path, "razor")
    assert read_mask(path) == QUERY
    write_mask(KV, path)
    assert read_mask(path) == KV
    assert [file.name for file in tmp_path.iterdir()] == ["mask.json"]


# What cannot be read.

OURS = {"schema": "interp-head-mask", "version": 1}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{}", r"holds no heads .* no test passed the gate"),
        ("[]", "is not a list of"),
        ("{", "is not JSON"),
        ("3", "none of the mask formats"),
        ('{"a": 1}', "none of the mask formats"),
        ('{"0-0": []}', "head '0-0' has \\[\\], which is not a list of finite numbers"),
        ('{"0-0": [1, "x"]}', "head '0-0'"),
        ('{"0-0": [1, NaN]}', "head '0-0'"),
        ('{"0-0": true}', "head '0-0'"),
        ('{"0-0": 1, "1-1": 1}', "leaves out 2 heads of 2 layers of 2, the first of them 0-1"),
        ('{"0-0": 1, "00-0": 1}', "names head 00-0 twice"),
        ('[["0-0", 1], ["0-0", 2]]', "names head 0-0 twice"),
        ('[["0-0", 1], ["0-1"]]', r'entry 1 is \["0-1"\]'),
        ('[["0.0", 1]]', "key '0.0'; heads are named"),
        ('[["0-0", 1], ["99999999-99999999", 2]]', "leaves out .* the first of them 0-1"),
        (json.dumps(OURS), "is not a head mask: it lacks 'scores'"),
        (json.dumps({**OURS, "version": 2}), "mask version 2, and this release reads up to 1"),
        (json.dumps({**OURS, "version": "1"}), "mask version '1'"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(content)
    with pytest.raises(UnreadableFile, match=complaint):
        read_mask(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": [[1, 2], [3]]}, "is not a head mask"),
        ({"scores": "x"}, "is not a head mask"),
        ({"selected": [[0, 9]]}, "selects head 0-9, which it does not score"),
        ({"selected": [[-1, 0]]}, "selects head -1-0"),
        ({"samples": [[[1]]]}, "samples have shape"),
        ({"kind": "value"}, "kind of head 'value'"),
        ({"family": 3}, "family is 3, not a text"),
        ({"metadata": None}, "is not a head mask"),
    ],
)
def test_a_damaged_field_of_our_own_is_named(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "mask.json"
    write_mask(QUERY, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UnreadableFile, match=complaint):
        read_mask(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"0": [2]}, "names head 0-2; the model has layers 0 to 2 of heads 0 to 1"),
        ({"3": [0]}, "names head 3-0"),
    ],
)
def test_heads_that_the_model_does_not_have_are_refused(tmp_path: Path, content: Any, complaint: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MaskMismatch, match=complaint):
        read_mask(path, like=SPEC)
    with pytest.raises(BadInput, match="how many layers and key/value heads"):
        read_mask(path)


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"razor"}))
def test_a_file_of_another_model_is_refused(path: Path, format: str) -> None:
    write_mask(KV if FORMATS[format].kind == "kv" else QUERY, path, format)
    smaller = SimpleNamespace(**{**vars(SPEC), "name": "small", "layers": 2})
    with pytest.raises(MaskMismatch):
        read_mask(path, format, like=smaller)
    with pytest.raises(MaskMismatch):
        read_mask(path, format, layers=2)


@pytest.mark.parametrize(
    "content", ['{"0": 3}', '{"0": ["1"]}', '{"0": [-1]}', '{"prefix_matching": [1]}', '{"0": [true]}']
)
def test_a_damaged_razor_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mask.json"
    path.write_text(content)
    with pytest.raises(UnreadableFile):
        read_mask(path, like=SPEC)


@pytest.mark.parametrize(
    ("scores", "config", "complaint"),
    [
        ("0.1\tx\n", '{"sink_size": 1, "recent_size": 2}', "is not a table of scores"),
        ("0.1\t0.2\n0.3\n", '{"sink_size": 1, "recent_size": 2}', "is not a table of scores"),
        ("", '{"sink_size": 1, "recent_size": 2}', "is not a table of finite scores"),
        ("nan\n", '{"sink_size": 1, "recent_size": 2}', "is not a table of finite scores"),
        ("0.1\n", '{"sink_size": 1}', "numbers sink_size and recent_size"),
        ("0.1\n", "{", "is not JSON"),
        ("0.1\n", None, "config.json cannot be read"),
    ],
)
def test_a_damaged_duo_folder_is_refused(path: Path, scores: str, config: str | None, complaint: str) -> None:
    path.mkdir()
    (path / "full_attention_heads.tsv").write_text(scores)
    if config is not None:
        (path / "config.json").write_text(config)
    with pytest.raises(UnreadableFile, match=complaint):
        read_mask(path)


@pytest.mark.parametrize(
    "array", [np.zeros(3), np.zeros((0, 2)), np.array([[np.inf]]), np.array([["x"]]), np.zeros((2, 2, 2))]
)
def test_an_array_that_is_no_mask_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "mask.npy", array)
    with pytest.raises(UnreadableFile):
        read_mask(tmp_path / "mask.npy")


@pytest.mark.parametrize("name", ["mask.npy", "mask.safetensors"])
def test_bytes_that_are_no_arrays_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UnreadableFile):
        read_mask(tmp_path / name)


def test_weights_are_not_a_mask(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UnreadableFile, match="does not say that it is a head mask"):
        read_mask(tmp_path / "model.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="There is no file"):
        read_mask(tmp_path / "absent.json")
    with pytest.raises(UnreadableFile, match="absent.json cannot be read"):
        read_mask(tmp_path / "absent.json", "json")
