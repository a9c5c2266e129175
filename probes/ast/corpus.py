"""Functions to parse: a seeded sample of the Python standard library or any folder, without comments, split by file."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from interp.errors import BadInput, UnreadableFile
from interp.pocket.skills.code import function as generated_function
from interp.tables import in_notebook
from probes.ast.languages import language, parse, parser, walk
from probes.ast.tree import Constituent, Leaf, Tree, TreeTuple, constituents, leaves, to_tuple

if TYPE_CHECKING:
    import tree_sitter

MAX_TOKENS = 512
"""Sub-tokens of a function, at most, as in the paper."""
PER_FILE = 20
"""Functions taken from one file, at most, so that no file makes up a large share."""
GENERATED_PER_FILE = 7
LARGEST = 500_000
"""Bytes of a file that is read, at most."""
NOT_OURS = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})
TESTS = frozenset({"test", "tests", "idle_test"})


@dataclass(frozen=True, repr=False)
class Snippet:
    """A function, its tree, and the file it comes from."""

    code: str
    tree: Tree
    file: str

    @classmethod
    def of(cls, code: str, language: str = "python", file: str = "typed") -> Snippet:
        """Code with the tree that the parser of its language gives. Raises BadInput as `parse`."""
        return cls(code, parse(code, language), file)

    def __repr__(self) -> str:
        first, *_ = self.code.partition("\n")
        return f"Snippet({first} … {len(self.leaves)} tokens, from {self.file})"

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaves(self.tree))

    @cached_property
    def vectors(self) -> TreeTuple:
        return to_tuple(self.tree)

    @cached_property
    def constituents(self) -> list[Constituent]:
        return constituents(self.tree)


@dataclass(frozen=True, repr=False)
class Split:
    """Functions to learn from, to stop learning by, and to judge on; no file has functions in two of them."""

    train: tuple[Snippet, ...]
    valid: tuple[Snippet, ...]
    test: tuple[Snippet, ...]
    language: str
    source: str
    seed: int

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.valid)} valid, {len(self.test)} test"
        return f"Split({self.language} of the {self.source}: {sizes})"

    def _repr_html_(self) -> str:
        import pandas as pd

        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        rows = [
            {
                "part": part,
                "functions": len(of),
                "files": len({snippet.file for snippet in of}),
                "tokens": sum(len(snippet.leaves) for snippet in of),
            }
            for part, of in parts.items()
        ]
        return in_notebook(self, pd.DataFrame(rows))


def functions(code: str, name: str) -> Iterator[str]:
    """The outermost functions of a file, moved to the left margin, without comments and documentation strings.

    Empty lines go too, and what is inside strings of several lines moves along. Raises BadInput as `parser`.
    """
    source, about = code.encode(), language(name)
    for node in walk(parser(name).parse(source).root_node, about.functions):
        if node.type in about.functions and not node.has_error:
            yield _stripped(node, source, about.blocks)


def _stripped(function: tree_sitter.Node, source: bytes, blocks: frozenset[str]) -> str:
    text, end = "", function.start_byte
    for node in walk(function):
        if "comment" in node.type or (node.parent and node.parent.type in blocks and _documents(node)):
            text += source[end : node.start_byte].decode()
            end = node.end_byte
    text += source[end : function.end_byte].decode()
    lines = re.sub(rf"^[ \t]{{0,{function.start_point.column}}}", "", text, flags=re.M).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip()) + "\n"


def _documents(node: tree_sitter.Node) -> bool:
    """Whether a statement of a block is its first and only a string."""
    if node.type != "expression_statement" or [child.type for child in node.children] != ["string"]:
        return False
    assert node.parent is not None
    return next(child for child in node.parent.children if not child.is_extra) == node


def sample_functions(
    n: int,
    tokenizers: Sequence[Any],
    *,
    folder: str | Path | None = None,
    name: str = "python",
    max_tokens: int = MAX_TOKENS,
    per_file: int = PER_FILE,
    seed: int = 0,
) -> tuple[Snippet, ...]:
    """Functions that parse and have at most `max_tokens` tokens for every tokenizer, no two alike, by file.

    They come from `folder`, or from the standard library of the Python that runs, without its tests. Files are read in
    the order the seed gives until there are enough; where there are fewer, all are returned. Raises UnreadableFile for
    a folder that is not there, BadInput where it holds no such function and as `parser`.
    """
    about = language(name)
    parser(name)
    if folder is None and name != "python":
        raise BadInput(
            f"the standard library holds Python; give a folder with {name} files ({', '.join(about.suffixes)})"
        )
    root, skipped = (Path(folder), NOT_OURS) if folder else (Path(sysconfig.get_path("stdlib")), NOT_OURS | TESTS)
    if not root.is_dir():
        raise UnreadableFile(f"there is no folder {root}")
    fits = _fits(tokenizers, max_tokens)
    files = list(_files(root, about.suffixes, skipped))
    Random(f"files {seed}").shuffle(files)
    found: list[Snippet] = []
    seen: set[str] = set()
    for file in files:
        taken = 0
        for code in _read(file, name):
            if taken == per_file or len(found) == n:
                break
            if code not in seen and fits(code) and (snippet := _snippet(code, name, str(file.relative_to(root)))):
                found.append(snippet)
                taken += 1
            seen.add(code)
        if len(found) == n:
            break
    if not found:
        raise BadInput(f"{root} holds no {name} function that parses and has at most {max_tokens} tokens")
    return tuple(found)


def generated_functions(n: int, *, seed: int = 0) -> tuple[Snippet, ...]:
    """`n` Python functions of the templates that the bundled model was trained on, no two alike, seven to a file.

    Raises BadInput for less than one.
    """
    if n < 1:
        raise BadInput(f"{n} functions were asked for; at least 1 can be had")
    rng, found = Random(f"functions {seed}"), dict[str, None]()
    while len(found) < n:
        found[generated_function(rng)] = None
    return tuple(Snippet.of(code, file=f"{i // GENERATED_PER_FILE}.py") for i, code in enumerate(found))


def split_by_file(
    snippets: Sequence[Snippet],
    *,
    valid: float = 0.15,
    test: float = 0.25,
    name: str = "python",
    source: str = "standard library",
    seed: int = 0,
) -> Split:
    """Whole files to each part, `valid` and `test` being about those shares of the functions.

    Raises BadInput where a part would be empty.
    """
    files = sorted({snippet.file for snippet in snippets})
    Random(f"split {seed}").shuffle(files)
    parts: dict[str, list[Snippet]] = {"test": [], "valid": [], "train": []}
    wanted = {"test": test * len(snippets), "valid": valid * len(snippets), "train": float("inf")}
    for file in files:
        part = next(part for part in parts if len(parts[part]) < wanted[part])
        parts[part] += [snippet for snippet in snippets if snippet.file == file]
    if not all(parts.values()):
        raise BadInput(
            f"{len(snippets)} functions of {len(files)} files cannot be split by file into train, validation and test"
        )
    return Split(tuple(parts["train"]), tuple(parts["valid"]), tuple(parts["test"]), name, source, seed)


def _files(root: Path, suffixes: Sequence[str], skipped: frozenset[str]) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted({*below} - skipped)
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix in suffixes)


def _fits(tokenizers: Sequence[Any], max_tokens: int) -> Callable[[str], bool]:
    return lambda code: all(len(each(code, verbose=False)["input_ids"]) <= max_tokens for each in tokenizers)


def _read(file: Path, name: str) -> Iterator[str]:
    """The functions of a file; none of one that is too large or is no UTF-8."""
    try:
        if file.stat().st_size <= LARGEST:
            yield from functions(file.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError):
        return


def _snippet(code: str, name: str, file: str) -> Snippet | None:
    try:
        return Snippet.of(code, name, file)
    except BadInput:
        return None
