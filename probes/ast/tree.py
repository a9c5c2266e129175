"""Syntax trees, and the three vectors that say everything about one (Shen et al. 2018; Hernández López et al. 2022).

A tree is binarised: a chain of nodes with one child each becomes one node labelled with the whole chain, and a node
with more than two children branches to the right through nodes without a label. In a binary tree the lowest common
ancestors of neighbouring leaves are all its inner nodes, each once, so their heights and labels, with the chains above
the leaves, are the tree. A label is the chain as a tuple of strings, topmost first, and `()` where the binarisation put
a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from interp.tasks.encoding import Span

Chain = tuple[str, ...]
"""Labels of nodes above each other that span the same leaves, topmost first; `()` for a node of the binarisation."""

Constituent = tuple[str, int, int]
"""Label, first leaf, last leaf."""


@dataclass(frozen=True)
class Leaf:
    """A terminal: its type in the grammar and its characters in the code."""

    label: str
    span: Span


@dataclass(frozen=True)
class Node:
    """A non-terminal with at least one child."""

    label: str
    children: tuple[Tree, ...]


Tree = Node | Leaf


@dataclass(frozen=True)
class TreeTuple:
    """A tree of n leaves as vectors.

    Attributes:
        d: height of the lowest common ancestor of leaves i and i + 1 in the binary tree, n - 1 of them; of a predicted
            tree only their order means something.
        c: label of that ancestor.
        u: the chain above each leaf, n of them.
    """

    d: tuple[float, ...]
    c: tuple[Chain, ...]
    u: tuple[Chain, ...]


def to_tuple(tree: Tree) -> TreeTuple:
    """Binarise a tree and read it off, from left to right."""
    _, d, c, u = _read(tree)
    return TreeTuple(tuple(d), tuple(c), tuple(u))


def _read(tree: Tree) -> tuple[int, list[int], list[Chain], list[Chain]]:
    """Height, d, c and u of a subtree."""
    chain: list[str] = []
    while isinstance(tree, Node):
        chain.append(tree.label)
        if len(tree.children) > 1:
            break
        (tree,) = tree.children
    if isinstance(tree, Leaf):
        return 0, [], [], [tuple(chain)]
    parts = [_read(child) for child in tree.children]
    height, d, c, u = parts[-1]
    for i in reversed(range(len(parts) - 1)):  # each node holds one child and all that is to its right
        left_height, left_d, left_c, left_u = parts[i]
        height = 1 + max(left_height, height)
        d = [*left_d, height, *d]
        c = [*left_c, tuple(chain) if i == 0 else (), *c]
        u = [*left_u, *u]
    return height, d, c, u


def leaves(tree: Tree) -> Iterator[Leaf]:
    """The terminals from left to right."""
    if isinstance(tree, Leaf):
        yield tree
    else:
        for child in tree.children:
            yield from leaves(child)


def constituents(tree: Tree) -> list[Constituent]:
    """Every non-terminal with the leaves below it, parents before children."""
    found: list[Constituent] = []
    _collect(tree, 0, found)
    return found


def _collect(tree: Tree, first: int, found: list[Constituent]) -> int:
    """Adds what is below; returns the leaf after the last one."""
    if isinstance(tree, Leaf):
        return first + 1
    place, end = len(found), first
    found.append((tree.label, first, first))
    for child in tree.children:
        end = _collect(child, end, found)
    found[place] = (tree.label, first, end - 1)
    return end
