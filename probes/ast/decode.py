"""From the three vectors back to a tree: split where the distance is greatest, and undo the binarisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from interp.errors import BadInput
from probes.ast.tree import Constituent, Leaf, Node, Tree, TreeTuple

BAD_ROOT = "bad_root"
"""Label of a predicted root that has none."""


def splits(d: Sequence[float]) -> list[tuple[int, int]]:
    """First and last leaf of the node whose children part at each boundary, in the order of the boundaries.

    The tree is the one of recursively splitting at the greatest distance, the first of equals: the Cartesian tree of
    `d`, found with one stack in linear time and without recursion.
    """
    first, last = [0] * len(d), [len(d)] * len(d)
    open_nodes: list[int] = []
    for i, distance in enumerate(d):
        while open_nodes and d[open_nodes[-1]] < distance:
            last[open_nodes.pop()] = i
        first[i] = open_nodes[-1] + 1 if open_nodes else 0
        open_nodes.append(i)
    return list(zip(first, last, strict=True))


def recovered(vectors: TreeTuple) -> list[Constituent]:
    """The constituents of the tree, parents before children: nodes of the binarisation are gone, chains are unfolded.

    A root without a label is called `bad_root`, as a tree needs one. Raises BadInput where lengths do not match.
    """
    n = len(vectors.u)
    if not len(vectors.d) == len(vectors.c) == n - 1:
        raise BadInput(f"a tree of {n} leaves has {n - 1} distances and labels, not {len(vectors.d)}, {len(vectors.c)}")
    found = []
    for (first, last), chain in zip(splits(vectors.d), vectors.c, strict=True):
        labels = chain or ((BAD_ROOT,) if (first, last) == (0, n - 1) else ())
        found += [(label, first, last) for label in labels]
    found += [(label, i, i) for i, chain in enumerate(vectors.u) for label in chain]
    return sorted(found, key=lambda constituent: (constituent[1], -constituent[2]))


def from_tuple(vectors: TreeTuple, leaves: Sequence[Leaf]) -> Tree:
    """The tree over these leaves; of a tree's own vectors (`to_tuple`) that tree. Raises BadInput as `recovered`."""
    if len(leaves) != len(vectors.u):
        raise BadInput(f"vectors of a tree of {len(vectors.u)} leaves do not fit {len(leaves)} leaves")
    waiting = recovered(vectors)[::-1]
    top: list[Tree] = []
    open_nodes: list[tuple[str, int, list[Tree]]] = [("", len(leaves), top)]
    for i, leaf in enumerate(leaves):
        while waiting and waiting[-1][1] == i:
            label, _, last = waiting.pop()
            open_nodes.append((label, last, []))
        open_nodes[-1][2].append(leaf)
        while open_nodes[-1][1] == i:
            label, _, children = open_nodes.pop()
            open_nodes[-1][2].append(Node(label, tuple(children)))
    (root,) = top
    return root


def right_branching(n: int) -> tuple[float, ...]:
    """Distances of the tree of n leaves in which every node holds one leaf and the rest."""
    return tuple(float(height) for height in range(n - 1, 0, -1))


def balanced(n: int) -> tuple[float, ...]:
    """Distances of the tree of n leaves whose nodes all part in the middle."""
    d = [0.0] * (n - 1)
    spans = [(0, n - 1, float(n))]
    while spans:
        first, last, height = spans.pop()
        if first < last:
            middle = (first + last) // 2
            d[middle] = height
            spans += [(first, middle, height - 1), (middle + 1, last, height - 1)]
    return tuple(d)


def shaped(trees: Sequence[TreeTuple], shape: Callable[[int], tuple[float, ...]]) -> list[TreeTuple]:
    """The same labels in trees of a fixed shape, such as `right_branching`."""
    return [replace(each, d=shape(len(each.u))) for each in trees]
