"""Where each policy stands in its file, and how deeply it nests.

Cedar's parser names neither lines nor, for most faults, the policy; and it overflows the process's
stack on deeply nested brackets instead of refusing them. Both are seen to here, before it reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from intarsia_client.errors import InputError

MAX_NESTING = 32
"""Brackets inside brackets, and ``if`` in one policy; the parser was seen to survive 32 of either
with a stack of 512 KiB, the smallest that a thread is given anywhere."""

MAX_OPERATORS = 500
"""Operators in one policy; a chain of them nests as well. 1,000 in a row were seen to be survived
with the usual stack of 8 MiB."""

_OPERATORS = frozenset("|&+-*!<>=.[")
_OPERATOR_WORDS = frozenset({"has", "in", "is", "like"})
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|[()\[\]{};]|[^\s"/()\[\]{};]+|["/]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One policy as it was written.

    Args:
        text: From its first word to its semicolon.
        line: The line of its first word, from 1.
    """

    text: str
    line: int


def split_statements(text: str) -> tuple[Statement, ...]:
    """Find the policies in a text, in their order.

    Args:
        text: Cedar policies.

    Returns:
        The policies; a last one without its semicolon too.

    Raises:
        InputError: If one nests more deeply than Cedar's parser can be trusted with.
    """
    found: list[Statement] = []
    start, depth, branches, operators = -1, 0, 0, 0
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word.startswith("//"):
            continue
        if start < 0:
            start = match.start()
        if word in "([{":
            depth += 1
        elif word in ")]}":
            depth -= 1
        elif word == "if":
            branches += 1
        if not word.startswith('"'):
            operators += (word in _OPERATOR_WORDS) + sum(sign in _OPERATORS for sign in word)
        if max(depth, branches) > MAX_NESTING or operators > MAX_OPERATORS:
            raise InputError(
                f"policies, line {_line(text, match.start())}",
                f"nests more than {MAX_NESTING} levels deep, or has over {MAX_OPERATORS} operators",
                "divide the policy into simpler ones",
            )
        if word == ";":
            found.append(Statement(text=text[start : match.end()], line=_line(text, start)))
            start, depth, branches, operators = -1, 0, 0, 0
    if start >= 0:
        found.append(Statement(text=text[start:], line=_line(text, start)))
    return tuple(found)


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
