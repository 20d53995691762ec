import json
import os
import re
import resource
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import click
import pytest
from intarsia_platform.cli.main import app, main
from intarsia_platform.cli.output import STANDARD_OUTPUT
from typer.main import get_command

PROGRAM = "import sys; from intarsia_platform.cli.main import main; sys.exit(main())"
HEAVY = ("torch", "numpy", "ray", "flwr", "mlflow", "transformers", "matplotlib", "sqlalchemy")


def commands(
    command: click.Command | None = None, words: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every command and group by the words that reach it."""
    command = command or get_command(app)
    found = [(words, command)]
    for name, child in getattr(command, "commands", {}).items():
        found += commands(child, (*words, name))
    return found


ALL = commands()


def test_the_entry_point_is_this_one():
    (script,) = entry_points(group="console_scripts", name="intarsia")
    assert script.load() is main


def test_help_takes_less_than_half_a_second_and_loads_nothing_heavy():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", PROGRAM, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what others do on this machine meanwhile is not ours.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        loaded = set(re.findall(r"\| +([\w.]+)$", shown.stderr, re.M))
        assert "intarsia_platform.cli.main" in loaded and not loaded & set(HEAVY)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_command_takes_the_common_options_and_has_a_page(intarsia, words, command):
    taken = {name for parameter in command.params for name in parameter.opts}
    assert {"--home", "--json", "--debug"} <= taken
    page = intarsia(*words, "--help")
    assert (page.code, page.err) == (0, "")
    assert " ".join(("Usage: intarsia", *words)) in page.out and "\\" not in page.out
    assert command.help
    # A short help that does not fit would end in dots.
    assert "..." not in page.out.partition("Commands:")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("--home", "right", "adapters", "list"),
        ("adapters", "--home", "right", "list"),
        ("adapters", "list", "--home", "right"),
        ("--home", "wrong", "adapters", "list", "--home", "right"),
    ],
)
def test_the_home_may_stand_anywhere_and_the_nearest_counts(intarsia, words, tmp_path):
    (tmp_path / "right").mkdir()
    assert intarsia(*words).code == 0
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    "words",
    [("--json", "-", "aggregate", "--list"), ("aggregate", "--list", "--json", STANDARD_OUTPUT)],
)
def test_json_on_standard_output_stands_alone(intarsia, words):
    ended = intarsia(*words)
    assert (ended.code, ended.err) == (0, "") and json.loads(ended.out)["methods"]


def test_a_json_file_is_whole_and_its_folder_is_made(intarsia, tmp_path):
    assert intarsia("aggregate", "--list", "--json", "a/b/list.json").code == 0
    text = (tmp_path / "a" / "b" / "list.json").read_text()
    assert text.startswith('{\n  "methods": [\n') and text.endswith("}\n")
    assert list((tmp_path / "a" / "b").iterdir()) == [tmp_path / "a" / "b" / "list.json"]


def test_an_error_leaves_the_json_file_as_it_was(intarsia, tmp_path):
    place = tmp_path / "result.json"
    assert intarsia("adapters", "list", "--home", "nowhere", "--json", place).code == 2
    assert not place.exists()
    place.write_text("old")
    assert intarsia("adapters", "list", "--home", "nowhere", "--json", place).code == 2
    assert place.read_text() == "old"


def test_a_place_for_json_that_is_below_a_file_is_storage(intarsia, tmp_path):
    (tmp_path / "file").write_text("")
    ended = intarsia("aggregate", "--list", "--json", "file/result.json")
    assert ended.code == 4 and ended.line.startswith("intarsia: error: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "intarsia needs a command: demo, simulate, aggregate, ask, score, serve, adapters, "),
        (("adapters",), "intarsia adapters needs a command: list, show, import, "),
        (("simulat",), "No such command 'simulat'. Did you mean 'simulate'?; see intarsia --help"),
        (("simulate",), "Missing argument 'CONFIG'; see intarsia simulate --help"),
        (("simulate", "a", "b"), "Got unexpected extra argument (b); see intarsia simulate --help"),
        (("demo", "--rounds", "3"), "No such option '--rounds'"),
        (("demo", "--set"), "Option '--set' requires an argument"),
        (("--home",), "Option '--home' requires an argument"),
        (("adapters", "export", "a"), "Missing option '--out'; see intarsia adapters export"),
    ],
)
def test_wrong_usage_is_one_line_and_2(intarsia, words, line):
    ended = intarsia(*words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.line.startswith("intarsia: error: ") and line in ended.line


def test_the_version_is_the_package_s(intarsia):
    ended = intarsia("--version")
    assert (ended.code, ended.out) == (0, f"intarsia {version('intarsia-platform')}\n")


def test_debug_shows_where_an_error_comes_from(intarsia):
    ended = intarsia("adapters", "list", "--home", "nowhere", "--debug")
    lines = ended.err.splitlines()
    assert ended.code == 2 and lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("intarsia: error: home: ")


@pytest.mark.parametrize("words", [("runs", "list"), ("simulate", "c.toml"), ("demo",)])
def test_a_home_that_cannot_be_written_is_4(intarsia, words, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "c.toml").write_text("")
    for home in ("file", "file/below", "/proc/none"):
        ended = intarsia(*words, "--home", home)
        expected = 2 if words[0] == "runs" and home != "file" else 4
        assert ended.code == expected, ended
        assert ended.line.startswith("intarsia: error: home: ")


def ended_with(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("words", [("--help",), ("aggregate", "--list")])
def test_a_reader_that_goes_away_gets_no_traceback(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        ended = ended_with(*words, stdout=pipe)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_under_standard_output_is_4():
    with Path("/dev/full").open("w") as full:
        ended = ended_with("--version", stdout=full)
    assert ended.returncode == 4 and "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


def test_letters_that_a_terminal_lacks_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = ended_with("adapters", "list", "--home", "né", env=environment)
    assert ended.returncode == 2 and "n\\xe9" in ended.stderr
