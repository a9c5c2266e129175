"""Trees are their three vectors: exactly, for every tree; and what parses, and what does not, is told apart."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import BadInput
from probes.ast import languages
from probes.ast.decode import BAD_ROOT, balanced, from_tuple, recovered, right_branching, splits
from probes.ast.languages import parse
from probes.ast.metrics import METRICS, by_type, membership, multiset
from probes.ast.tree import Chain, Leaf, Node, Tree, TreeTuple, constituents, leaves, to_tuple

LABELS = st.sampled_from(["a", "b", "a/b", "<empty>", "<sep>"])


def numbered(tree: Tree) -> Tree:
    """The same tree, with leaves that can be told apart."""
    places = iter(range(10_000))

    def walk(node: Tree) -> Tree:
        if isinstance(node, Leaf):
            place = next(places)
            return Leaf(node.label, (place, place + 1))
        return Node(node.label, tuple(walk(child) for child in node.children))

    return walk(tree)


TREES = st.recursive(
    st.builds(Leaf, LABELS, st.just((0, 1))),
    lambda below: st.builds(Node, LABELS, st.lists(below, min_size=1, max_size=5).map(tuple)),
    max_leaves=40,
).map(numbered)
ROOTED = st.builds(Node, LABELS, st.lists(TREES, min_size=1, max_size=4).map(tuple)).map(numbered)


def binary(tree: Tree) -> tuple[Chain, Tree | tuple[Tree, Tree]]:
    """The binary tree as the paper draws it: what a node is called, and its leaf or its two children."""
    chain: Chain = ()
    while isinstance(tree, Node) and len(tree.children) == 1:
        chain, tree = (*chain, tree.label), tree.children[0]
    if isinstance(tree, Leaf):
        return chain, tree
    first, *rest = tree.children
    label = (*chain, tree.label) if tree.label else ()
    right = rest[0] if len(rest) == 1 else Node("", tuple(rest))
    return label, (first, right)


def vectors_by_hand(tree: Tree) -> TreeTuple:
    """Heights and labels of the lowest common ancestor of each two neighbours, found by searching the binary tree."""
    inner: list[tuple[int, int, int, Chain]] = []
    above: list[Chain] = []

    def walk(node: Tree) -> tuple[int, int, int]:
        chain, below = binary(node)
        if isinstance(below, Leaf):
            above.append(chain)
            return len(above) - 1, len(above) - 1, 0
        first, _, left_height = walk(below[0])
        _, last, right_height = walk(below[1])
        height = 1 + max(left_height, right_height)
        inner.append((first, last, height, chain))
        return first, last, height

    walk(tree)
    common = [
        min((n for n in inner if n[0] <= i and n[1] >= i + 1), key=lambda n: n[1] - n[0]) for i in range(len(above) - 1)
    ]
    return TreeTuple(tuple(n[2] for n in common), tuple(n[3] for n in common), tuple(above))


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_a_tree_is_its_vectors_and_back(tree: Tree) -> None:
    vectors = to_tuple(tree)
    assert vectors == vectors_by_hand(tree)
    assert from_tuple(vectors, tuple(leaves(tree))) == tree


@settings(max_examples=150, deadline=None)
@given(ROOTED)
def test_true_vectors_have_the_tree_s_constituents_and_score_one(tree: Node) -> None:
    said, true = recovered(to_tuple(tree)), constituents(tree)
    assert sorted(said) == sorted(true)
    assert [metric(said, true).f1 for name, metric in METRICS.items() if name != "unlabelled f1"] == [1.0, 1.0]
    assert (by_type([(said, true)]).f1 == 1).all()


def recursive_splits(d: list[float], first: int, found: dict[int, tuple[int, int]]) -> None:
    if d:
        i = d.index(max(d))
        found[first + i] = (first, first + len(d))
        recursive_splits(d[:i], first, found)
        recursive_splits(d[i + 1 :], first + i + 1, found)


@given(st.lists(st.integers(0, 6).map(float), max_size=30))
def test_one_pass_splits_where_recursion_at_the_maximum_does(d: list[float]) -> None:
    found: dict[int, tuple[int, int]] = {}
    recursive_splits(d, 0, found)
    assert splits(d) == [found[i] for i in range(len(d))]


def test_a_flat_tree_of_any_length_needs_no_recursion() -> None:
    n = 3 * sys.getrecursionlimit()
    tree = Node("list", tuple(Leaf("x", (i, i + 1)) for i in range(n)))
    assert from_tuple(to_tuple(tree), tree.children) == tree  # type: ignore[arg-type]


def test_a_predicted_root_without_a_label_is_named_and_other_nameless_nodes_vanish() -> None:
    vectors = TreeTuple((1.0, 3.0, 2.0), ((), (), ("call",)), ((), ("name",), (), ()))
    assert recovered(vectors) == [(BAD_ROOT, 0, 3), ("name", 1, 1), ("call", 2, 3)]


def test_baselines_have_the_shape_of_their_names() -> None:
    assert splits(right_branching(4)) == [(0, 3), (1, 3), (2, 3)]
    assert splits(balanced(4)) == [(0, 1), (0, 3), (2, 3)]
    assert sorted(splits(balanced(7)), key=lambda s: s[0] - s[1])[:3] == [(0, 6), (0, 3), (4, 6)]


def test_vectors_of_other_lengths_are_refused() -> None:
    with pytest.raises(BadInput, match="a tree of 2 leaves has 1 distances"):
        recovered(TreeTuple((1.0, 2.0), ((), ()), ((), ())))
    with pytest.raises(BadInput, match="do not fit 1 leaves"):
        from_tuple(TreeTuple((1.0,), (("a",),), ((), ())), (Leaf("x", (0, 1)),))


def test_membership_counts_a_repeated_constituent_every_time_and_the_multiset_as_often_as_it_is_there() -> None:
    said, true = [("a", 0, 1), ("a", 0, 1), ("b", 0, 0)], [("a", 0, 1), ("c", 1, 1)]
    assert (membership(said, true).precision, membership(said, true).recall) == (2 / 3, 1 / 2)
    assert (multiset(said, true).precision, multiset(said, true).recall) == (1 / 3, 1 / 2)
    assert multiset(said, true).f1 == pytest.approx(0.4)
    assert membership([], true).f1 == 0
    kinds = by_type([(said, true)]).set_index("label")
    assert kinds.loc["a"].tolist() == [0.5, 1.0, pytest.approx(2 / 3), 1, 2]
    assert kinds.loc["c", "recall"] == 0


def test_strings_are_one_leaf_comments_none_and_offsets_count_characters() -> None:
    code = 'def f(å):\n    # note\n    return f"é{å}" + \\\n        å\n'
    found = [(leaf.label, code[slice(*leaf.span)]) for leaf in leaves(parse(code, "python"))]
    assert [text for _, text in found] == ["def", "f", "(", "å", ")", ":", "return", 'f"é{å}"', "+", "å"]
    assert found[7][0] == "string"


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [
        ("javascript", 'function f(a) { return a + "b"; }', "function_declaration"),
        ("go", 'func f(a int) string {\n\treturn "b"\n}\n', "function_declaration"),
    ],
)
def test_other_languages_parse_and_come_back(name: str, code: str, kind: str) -> None:
    pytest.importorskip(f"tree_sitter_{name}")
    tree = parse(code, name)
    assert kind in {label for label, _, _ in constituents(tree)}
    assert '"b"' in [code[slice(*leaf.span)] for leaf in leaves(tree)]
    assert from_tuple(to_tuple(tree), tuple(leaves(tree))) == tree


@pytest.mark.parametrize("code", ["def f(:\n    return\n", "def f():\n", "return )", "def f(x:\n  pass"])
def test_code_that_does_not_parse_is_refused_with_its_place(code: str) -> None:
    with pytest.raises(BadInput, match="no python that parses: line"):
        parse(code, "python")
    with pytest.raises(BadInput, match=r"no code in|parses"):
        parse("# only this\n", "python")


def test_a_missing_grammar_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_go", None)
    languages.parser.cache_clear()
    with pytest.raises(BadInput, match=r"grammar of go is not installed.*interp-workbench\[code\].*tree-sitter-go"):
        parse("x", "go")
    with pytest.raises(BadInput, match="did you mean 'python'"):
        parse("x", "pyton")
