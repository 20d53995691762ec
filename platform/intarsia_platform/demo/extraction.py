"""Reads documentation out of source code, without running it, and cuts it into passages."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator

SHORTEST_DOCSTRING = 80
"""Characters below which a docstring says too little to be worth a place."""

SHORTEST_PASSAGE = 300
LONGEST_PASSAGE = 900
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DEEPEST_INDENT = 8


def clean_text(text: str) -> str:
    """Normalises white space: one space within a line, at most one empty line between lines.

    Args:
        text: Any text.

    Returns:
        The text without trailing or repeated white space. Indentation stays, up to eight
        columns, because it carries the structure of lists and examples.
    """
    lines = []
    for line in text.expandtabs(4).splitlines():
        body = " ".join(line.split())
        indent = len(line) - len(line.lstrip())
        lines.append(" " * min(indent, _DEEPEST_INDENT) + body if body else "")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def extract_docstrings(source: str) -> list[str]:
    """Reads the docstrings of a module, its classes and its functions.

    Args:
        source: Python source code. It is parsed, never run.

    Returns:
        The cleaned docstrings of at least ``SHORTEST_DOCSTRING`` characters, in the order in
        which they stand in the file; empty if the source does not parse.
    """
    tree = _parse(source)
    if tree is None:
        return []
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = clean_text(ast.get_docstring(node) or "")
            if len(text) >= SHORTEST_DOCSTRING:
                found.append((getattr(node, "lineno", 0), text))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def extract_comments(source: str) -> list[str]:
    """Reads the blocks of consecutive comment lines of a file.

    Args:
        source: Python source code.

    Returns:
        The cleaned blocks of at least ``SHORTEST_DOCSTRING`` characters, without their hash
        marks; copyright notices are left out.
    """
    blocks: list[str] = []
    lines: list[str] = []
    for line in [*source.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            lines.append(stripped.lstrip("#").removeprefix(" "))
            continue
        text = clean_text("\n".join(lines))
        lines = []
        if len(text) >= SHORTEST_DOCSTRING and "copyright" not in text.lower():
            blocks.append(text)
    return blocks


def cut_passages(
    texts: Iterable[str], *, shortest: int = SHORTEST_PASSAGE, longest: int = LONGEST_PASSAGE
) -> list[str]:
    """Cuts texts into passages of bounded length, at the ends of paragraphs where possible.

    Neighbouring short texts are joined; a paragraph too long for one passage is cut at the end
    of a line, or failing that at a space.

    Args:
        texts: Cleaned texts, in reading order.
        shortest: Characters that a passage should reach. Only the last passage may be shorter,
            down to half of this; a shorter rest is dropped.
        longest: Characters that no passage exceeds.

    Returns:
        The passages, in reading order.

    Raises:
        ValueError: If the bounds leave no room to cut.
    """
    if not 0 < shortest <= longest // 2:
        raise ValueError(
            f"shortest={shortest} must be positive and at most half of longest={longest}; "
            f"lower it to {longest // 2} or less."
        )
    passages: list[str] = []
    current = ""
    for text in texts:
        # No piece is longer than longest - shortest - 2: whatever does not fit any more
        # therefore leaves behind a passage of at least the shortest length.
        for separator, piece in _pieces(text, longest - shortest - 2):
            if current and len(current) + len(separator) + len(piece) > longest:
                passages.append(current)
                current = ""
            current = current + separator + piece if current else piece
        if len(current) >= shortest:
            passages.append(current)
            current = ""
    if len(current) >= shortest // 2:
        passages.append(current)
    return passages


def literal_strings(source: str) -> dict[str, str]:
    """Reads the dictionaries of strings that a module assigns as literals.

    Args:
        source: Python source code. It is parsed, never run.

    Returns:
        Every string entry of those dictionaries; empty if the source does not parse.
    """
    tree = _parse(source)
    entries: dict[str, str] = {}
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    entries[str(key.value)] = str(value.value)
    return entries


def _parse(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        # Invalid escapes in other people's files are not this program's news.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _pieces(text: str, limit: int) -> Iterator[tuple[str, str]]:
    """Yields (separator before the piece, piece of at most limit characters)."""
    for paragraph in text.split("\n\n"):
        separator = "\n\n"
        piece = ""
        for line in paragraph.split("\n"):
            rest = line
            while len(rest) > limit:
                cut = rest.rfind(" ", 1, limit)
                cut = cut if cut > 0 else limit
                if piece:
                    yield separator, piece
                    piece, separator = "", "\n"
                yield separator, rest[:cut]
                separator, rest = "\n", rest[cut:].lstrip()
            if piece and len(piece) + 1 + len(rest) > limit:
                yield separator, piece
                piece, separator = rest, "\n"
            else:
                piece = f"{piece}\n{rest}" if piece else rest
        if piece:
            yield separator, piece
