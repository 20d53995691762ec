"""Errors that a person can act on, each with a stable exit code.

Every error is one line that names the thing, its value and the remedy. The exit codes are part of
the command line's contract (see docs/exit-codes.md) and are never reused for something else.
"""

from __future__ import annotations


class IntarsiaError(Exception):
    """Base of all errors that Intarsia raises on purpose.

    Args:
        thing: What is wrong, in the words of the person who typed it (a config key, a file, a
            client's name).
        value: The offending value; shown as it was given.
        remedy: What to do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, thing: str, value: object, remedy: str) -> None:
        """Keep the three parts and make the one line of them."""
        self.thing = thing
        self.value = value
        self.remedy = remedy
        # One line, whatever a stranger's value holds.
        super().__init__(" ".join(f"{thing}: {value}; {remedy}".split()))

    def __reduce__(self) -> tuple[type[IntarsiaError], tuple[str, object, str]]:
        """Pickle by parts, so that an error raised in another process arrives whole."""
        return type(self), (self.thing, self.value, self.remedy)


class InputError(IntarsiaError):
    """Bad input or usage: a config key, a data file, an option, a model that is not there."""

    exit_code = 2


class AccessError(IntarsiaError):
    """Refused or unknown; both carry the same words so that neither reveals the other."""

    exit_code = 3


class StorageError(IntarsiaError):
    """The home, the store or the database cannot be read or written (permissions, disk full)."""

    exit_code = 4


class FederationError(IntarsiaError):
    """A federation cannot go on: no client answered in time, or none was accepted."""

    exit_code = 5


class IntegrityError(IntarsiaError):
    """Stored bytes are not what their digest says, or a file is truncated."""

    exit_code = 6


class RefusedUpdate(IntarsiaError):  # noqa: N818 - an outcome of admission, not a failure of ours
    """A client's update that admission turned away; the round goes on without it.

    Args:
        reason: A short stable word for counting, such as ``"not-finite"`` or ``"replayed-nonce"``.
        thing: As in :class:`IntarsiaError`.
        value: As in :class:`IntarsiaError`.
        remedy: As in :class:`IntarsiaError`.
    """

    exit_code = 2

    def __init__(self, reason: str, thing: str, value: object, remedy: str) -> None:
        """Keep the reason beside the line."""
        self.reason = reason
        super().__init__(thing, value, remedy)

    def __reduce__(self) -> tuple[type[RefusedUpdate], tuple[str, str, object, str]]:  # type: ignore[override]
        """Pickle by parts, the reason first."""
        return type(self), (self.reason, self.thing, self.value, self.remedy)
