import errno
import inspect
import re
from pathlib import Path

import pytest
from intarsia_client import errors
from intarsia_platform.cli.failures import UNEXPECTED, run_command
from intarsia_platform.cli.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "exit-codes.md"


def ended(error: BaseException, *, debug: bool = False) -> int:
    def command() -> None:
        raise error

    return run_command(command, Settings(debug=debug))


def test_the_page_lists_every_code_with_its_errors():
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.M)
    listed = {int(code): re.findall(r"`(\w+)`", names) for code, names, _, _ in rows}
    assert set(listed) == {0, 1, 2, 3, 4, 5, 6, 7, 130, 143}
    raised = {
        name: kind.exit_code
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.IntarsiaError) and kind is not errors.IntarsiaError
    }
    assert {name: code for code, names in listed.items() for name in names} == raised


@pytest.mark.parametrize(
    "kind",
    [
        errors.InputError,
        errors.AccessError,
        errors.StorageError,
        errors.FederationError,
        errors.IntegrityError,
    ],
)
def test_an_error_of_ours_is_its_line_and_its_code(kind, capsys):
    assert ended(kind("some\nthing", 3, "do that")) == kind.exit_code
    assert capsys.readouterr() == ("", "intarsia: error: some thing: 3; do that\n")


def test_anything_else_is_one_line_and_a_hint(capsys):
    assert ended(ZeroDivisionError("by\nzero\x1b[0m")) == UNEXPECTED
    assert capsys.readouterr().err == (
        "intarsia: error: ZeroDivisionError: by zero\\x1b[0m; "
        "run again with --debug for the traceback\n"
    )


def test_debug_shows_the_traceback_before_the_line(capsys):
    assert ended(ZeroDivisionError("zero"), debug=True) == UNEXPECTED
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "intarsia: error: ZeroDivisionError: zero"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_the_disk_refuses_is_storage_whoever_asked(number, capsys):
    error = OSError(number, "refused", "/some/file")
    assert ended(error) == errors.StorageError.exit_code
    assert "error: file /some/file: refused; free space" in capsys.readouterr().err


def test_an_interruption_is_no_error(capsys):
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "intarsia: interrupted\n"


def test_success_is_0(capsys):
    assert run_command(lambda: None, Settings()) == 0
    assert capsys.readouterr() == ("", "")
