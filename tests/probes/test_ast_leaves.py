"""Functions are sampled without comments, copies or leaks; their leaves have the states of their own tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch

import interp
from interp.errors import BadInput, PromptTooLong, UnreadableFile
from interp.pocket.skills.code import function
from interp.tracing.model import Model
from probes.ast.corpus import Snippet, functions, sample_functions, split_by_file
from probes.ast.decode import from_tuple, recovered
from probes.ast.languages import parse
from probes.ast.leaves import LeafStates, leaf_states
from probes.ast.metrics import METRICS

SOURCE = '''"""A module."""

class A:
    """A class."""

    # a comment
    def method(self, x):
        """What it does,
        in two lines."""
        y = "# no comment"  # a comment

        return """text""" + y

    def only_documented(self):
        """Nothing else."""


def outer():
    def inner():
        return 1
    return inner
'''


@pytest.fixture(scope="module")
def pocket() -> Model:
    return interp.load("pocket")


def snippet(code: str, file: str = "a.py") -> Snippet:
    return Snippet.of(code, file=file)


def test_functions_come_without_comments_and_documentation() -> None:
    method, documented, outer = functions(SOURCE, "python")
    assert method == 'def method(self, x):\n    y = "# no comment"\n    return """text""" + y\n'
    assert outer == "def outer():\n    def inner():\n        return 1\n    return inner\n"
    with pytest.raises(BadInput, match="parses"):  # nothing is left of its body
        parse(documented, "python")


def test_other_languages_lose_their_comments_too() -> None:
    code = "// note\nfunction f(a) { /* no */ return a; }\nconst g = 1;\n"
    assert list(functions(code, "javascript")) == ["function f(a) {  return a; }\n"]


def test_every_sampled_function_of_the_standard_library_comes_back_and_scores_one(pocket: Model) -> None:
    found = sample_functions(30, [pocket.tokenizer], max_tokens=256, seed=3)
    assert len(found) == len({s.code for s in found}) == 30
    assert found == sample_functions(30, [pocket.tokenizer], max_tokens=256, seed=3)
    assert found != sample_functions(30, [pocket.tokenizer], max_tokens=256, seed=4)
    for each in found:
        assert len(pocket.tokenizer(each.code)["input_ids"]) <= 256
        assert "#" not in {leaf.label for leaf in each.leaves}
        assert from_tuple(each.vectors, each.leaves) == each.tree
        said = recovered(each.vectors)
        assert [metric(said, each.constituents).f1 for metric in METRICS.values()] == [1.0] * 3


def test_no_file_and_no_code_is_in_two_parts(tmp_path: Path) -> None:
    rng = Random(0)
    shared = function(rng)
    for i in range(12):
        (tmp_path / f"{i}.py").write_text(shared + "".join(function(rng) for _ in range(4)))
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "other.txt").write_text("def f(): return 1\n")
    split = split_by_file(sample_functions(100, [], folder=tmp_path), seed=1)
    files = [{s.file for s in part} for part in (split.train, split.valid, split.test)]
    codes = [s.code for part in (split.train, split.valid, split.test) for s in part]
    assert sum(map(len, files)) == len(set().union(*files)) == 12
    assert codes.count(shared) == 1
    assert len(set(codes)) == len(codes)


def test_folders_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no folder"):
        sample_functions(3, [], folder=tmp_path / "nowhere")
    with pytest.raises(BadInput, match="holds no python function"):
        sample_functions(3, [], folder=tmp_path)
    with pytest.raises(BadInput, match="standard library holds Python"):
        sample_functions(3, [], name="javascript")
    with pytest.raises(BadInput, match="cannot be split by file"):
        split_by_file([snippet("def f():\n    return 1\n")])


CODES = ["def get(items):\n    return len(items) + 1\n", "def f(x):\n    if x:\n        return x\n"]


def test_a_leaf_has_the_mean_of_the_tokens_that_touch_it(pocket: Model) -> None:
    snippets = [snippet(code) for code in CODES]
    states = leaf_states(pocket, snippets)
    assert states.sites == ("embed", *(f"resid_post.{i}" for i in range(pocket.spec.layers)))
    assert states.lengths == tuple(len(s.leaves) for s in snippets)
    row = 0
    for each in snippets:
        coded = pocket.tokenizer(each.code, return_offsets_mapping=True)
        trace = pocket.run(each.code, read=["embed", "resid_post"])
        for leaf in each.leaves:
            start, end = leaf.span
            own = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < end and b > start]
            for site in states.sites:
                assert torch.allclose(states.of(site)[row], trace[site][0, own].mean(0), atol=1e-4)
            row += 1
    assert row == len(states.values[0])


def test_the_following_token_brings_right_context(pocket: Model) -> None:
    """A causal model's leaf knows nothing of what follows, unless the token after it is counted in."""
    a, b = snippet("def f(x):\n    return x + 1\n"), snippet("def f(x):\n    return x * 1\n")
    (at,) = [i for i, leaf in enumerate(a.leaves) if a.code[slice(*leaf.span)] == "+"]
    plain, wide = (leaf_states(pocket, [a, b], following=f).values.unflatten(1, (2, -1)) for f in (False, True))
    assert torch.allclose(plain[:, 0, : at - 1], plain[:, 1, : at - 1], atol=1e-4)
    assert torch.allclose(plain[:, 0, at - 1], plain[:, 1, at - 1], atol=1e-4)
    assert not torch.allclose(wide[:, 0, at - 1], wide[:, 1, at - 1], atol=1e-2)


def test_one_by_one_is_the_published_tokenisation_and_sees_no_line_breaks(pocket: Model) -> None:
    each = snippet(CODES[1])
    words = [each.code[slice(*leaf.span)] for leaf in each.leaves]
    ids = list(pocket.tokenizer("")["input_ids"])
    ends = []
    for word in words:
        ids += pocket.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        ends.append(len(ids))
    trace = pocket.run([ids], read=["resid_post.1"])
    states = leaf_states(pocket, [each], alignment="one-by-one").of("resid_post.1")
    last = trace["resid_post.1"][0, ends[-2] : ends[-1]].mean(0)
    assert torch.allclose(states[-1], last, atol=1e-4)
    respaced = snippet(each.code.replace("    ", "  "))
    assert torch.equal(leaf_states(pocket, [respaced], alignment="one-by-one").values[:, -1], leaf_states(
        pocket, [each], alignment="one-by-one").values[:, -1])  # fmt: skip
    assert not torch.allclose(leaf_states(pocket, [each]).of("resid_post.1"), states, atol=1e-2)


def test_leaves_of_one_token_are_counted_as_tied(pocket: Model) -> None:
    each = snippet(CODES[0])
    offsets = pocket.tokenizer(each.code, return_offsets_mapping=True)["offset_mapping"]
    tokens = [{i for i, (a, b) in enumerate(offsets) if a < leaf.span[1] and b > leaf.span[0]} for leaf in each.leaves]
    same = [a == b for a, b in pairwise(tokens)]
    assert any(same)
    assert leaf_states(pocket, [each]).tied == pytest.approx(sum(same) / len(same))


def test_shifted_leaves_keep_their_function_and_no_place() -> None:
    values = torch.arange(7.0).reshape(1, 7, 1)
    moved = LeafStates(("embed",), values, (4, 3)).shifted().values.flatten().tolist()
    assert moved == [2, 3, 0, 1, 6, 4, 5]


def test_functions_beyond_the_context_and_other_alignments_are_refused(pocket: Model) -> None:
    long = snippet("def f():\n    return [" + ", ".join(f"value{i}" for i in range(900)) + "]\n")
    with pytest.raises(PromptTooLong, match="2,?048"):
        leaf_states(pocket, [snippet(CODES[0]), long])
    with pytest.raises(BadInput, match="did you mean 'offsets'"):
        leaf_states(pocket, [snippet(CODES[0])], alignment="offset")  # type: ignore[arg-type]
