"""Programming languages: their grammars, and code as a syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import BadInput, choose
from probes.ast.tree import Leaf, Node, Tree

if TYPE_CHECKING:
    import tree_sitter


@dataclass(frozen=True)
class Language:
    """Where the grammar is, which files hold the language, and which of its nodes are functions or their text.

    `blocks` are nodes whose first statement, if it is only a string, is documentation.
    """

    package: str
    suffixes: tuple[str, ...]
    functions: frozenset[str]
    blocks: frozenset[str] = frozenset()


DEEPEST = 300
"""Levels of a tree that is read: more would not fit the interpreter's stack."""

LANGUAGES = {
    "python": Language("tree-sitter-python", (".py",), frozenset({"function_definition"}), frozenset({"block"})),
    "javascript": Language(
        "tree-sitter-javascript", (".js", ".mjs"), frozenset({"function_declaration", "generator_function_declaration"})
    ),
    "go": Language("tree-sitter-go", (".go",), frozenset({"function_declaration", "method_declaration"})),
}


def language(name: str) -> Language:
    """A language by name. Raises BadInput naming the valid ones."""
    if name not in LANGUAGES:
        raise BadInput(f"there is no language {name!r}; {choose(name, LANGUAGES)}")
    return LANGUAGES[name]


@cache
def parser(name: str) -> tree_sitter.Parser:
    """The parser of a language. Raises BadInput naming what to install where its grammar is missing."""
    package = language(name).package
    try:
        import tree_sitter

        grammar = import_module(package.replace("-", "_"))
    except ImportError as error:
        raise BadInput(
            f"the grammar of {name} is not installed ({error.name}): pip install 'interp-workbench[code]' {package}"
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


def parse(code: str, name: str) -> Tree:
    """The syntax tree of a piece of code; strings are single leaves, and comments are no part of it.

    Raises BadInput where the code does not parse, saying where, where it is empty and where it is nested too deeply.
    """
    try:
        source = code.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"this is no text: character {error.start + 1} of {code[:60]!r} is half of one") from error
    if not code.strip():
        raise BadInput(f"there is no code in {code[:60]!r}")
    root = parser(name).parse(source).root_node
    if _depth(root) > DEEPEST:
        raise BadInput(f"{code[:60]!r} … is nested more than {DEEPEST} levels deep")
    for node in walk(root):
        if node.is_error or node.is_missing or (node.is_named and node.start_byte == node.end_byte):
            row, column = node.start_point
            raise BadInput(f"this is no {name} that parses: line {row + 1}, column {column + 1} of {code[:60]!r}")
    before = np.cumsum([0, *(byte & 0xC0 != 0x80 for byte in source)])  # characters that begin before each byte
    tree = _tree(root, before)
    if tree is None:
        raise BadInput(f"there is no code in {code[:60]!r}")
    return tree


def walk(root: tree_sitter.Node, inside: frozenset[str] | None = None) -> Iterator[tree_sitter.Node]:
    """All nodes in the order of the code; not what is below nodes of the types `inside`."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if inside is None or node.type not in inside:
            waiting += reversed(node.children)


def _depth(root: tree_sitter.Node) -> int:
    """How many levels of nodes there are; counting ends beyond the deepest that is read."""
    level, depth = [root], 0
    while level and depth <= DEEPEST:
        level, depth = [child for node in level for child in node.children], depth + 1
    return depth


def _tree(node: tree_sitter.Node, before: np.ndarray) -> Tree | None:
    if node.is_extra or node.start_byte == node.end_byte:  # comments, line continuations, tokens nobody wrote
        return None
    if not node.children or is_string(node):
        return Leaf(node.type, (int(before[node.start_byte]), int(before[node.end_byte])))
    children = tuple(tree for child in node.children if (tree := _tree(child, before)) is not None)
    return Node(node.type, children) if children else None


def is_string(node: tree_sitter.Node) -> bool:
    """Whether the node is a string literal as a whole: the grammars name them `string` or `…string_literal`."""
    return node.is_named and (node.type == "string" or "string_literal" in node.type)
