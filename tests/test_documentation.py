"""README.md and docs/ against the source: what they name is there, what they show can be typed.

That docs/command-line.md names every option and every key is tested beside the command line.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from flwr.app import Context, RecordDict
from intarsia_client.peft_files import read_adapter
from intarsia_platform.cli.main import app
from intarsia_platform.cli.settings import Settings
from intarsia_platform.configuration import configuration_from_mapping
from intarsia_platform.demo.run import BASE
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = r"(?:clients|aggregators|continual|platform|tests|docs|deploy|helm|\.ci)"
FEDERATION = ROOT / "platform" / "intarsia_platform" / "federation"
REGISTRY = ROOT / "platform" / "intarsia_platform" / "registry"
COMMANDS = get_command(app)
# Where a command is only sketched, its words cannot be parsed as they stand.
SKETCHED = re.compile(r"…|\.\.\.|[\[\]|]|[A-Z]{3,}")

pages = pytest.mark.parametrize("page", TEXTS)


def blocks(page: str, *languages: str) -> list[str]:
    found = re.findall(r"^```([\w-]*)\n(.*?)^```", TEXTS[page], re.M | re.S)
    return [text for language, text in found if language in languages]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)


def inline_code(page: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def shell_lines(page: str) -> Iterator[list[str]]:
    """Words of the lines that a person could type, settings of the environment left out."""
    for block in blocks(page, "", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            # The signs of diagrams and formulas are no shell's.
            if re.match(r"(\w+=\S+ )*(intarsia|make|\.venv/bin/[\w-]+) ", line):
                words = shlex.split(line, comments=True)
                yield [word for word in words if not re.match(r"[A-Z_]+=", word)]


def slugs(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pages
def test_relative_links_lead_somewhere(page: str) -> None:
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
        if re.match(r"https?:|mailto:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (ROOT / page).parent / place if place else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in slugs(found.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"^\| \[([\w-]+\.md)\]", TEXTS["docs/README.md"], re.M))
    there = {Path(page).name for page in TEXTS if page.startswith("docs/")} - {"README.md"}
    assert listed == there


@pages
def test_paths_that_are_named_are_there(page: str) -> None:
    for code in [*inline_code(page), *(word for words in shell_lines(page) for word in words)]:
        path, _, test = code.partition("::")
        if re.fullmatch(rf"{FOLDERS}/[\w./-]*", path):
            assert (ROOT / path).exists(), code
            if test:
                source = (ROOT / path).read_text(encoding="utf-8")
                assert f"def {test.rpartition('::')[2]}(" in source, code


@pages
def test_makes_targets_are_there(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    typed = [words[1] for words in shell_lines(page) if words[0] == "make"]
    named = [code.split()[1] for code in inline_code(page) if re.fullmatch(r"make \w+", code)]
    for target in [*typed, *named]:
        assert re.search(rf"^{target}:", makefile, re.M), target


def parse(words: list[str]) -> None:
    """Let click read a command line as it would, without running anything.

    Raises:
        click.ClickException: If it is no such command line.
    """
    command, rest, parent = COMMANDS, words[1:], None
    name = words[0]
    while True:
        parent = command.make_context(name, list(rest), parent=parent, obj=Settings())
        if not isinstance(command, click.Group):
            return
        left = [*parent._protected_args, *parent.args]
        found, child, rest = command.resolve_command(parent, left)
        assert found is not None and child is not None
        name, command = found, child


def glance(sketch: str) -> None:
    """See that the commands and options of a sketched command line exist."""
    path: list[click.Command] = [COMMANDS]
    for word in re.sub(r"[\[\]…]|\.\.\.", " ", sketch).split()[1:]:
        children = getattr(path[-1], "commands", {})
        if word.startswith("--"):
            options = {option for one in path for p in one.params for option in p.opts}
            assert word.partition("=")[0] in {*options, "--help"}, f"{word} in {sketch}"
        elif word == "|":
            path = path[:1] if len(path) < 3 else path[:2]
        elif children:
            alternatives = word.strip("|").split("|")
            assert all(one in children for one in alternatives), f"{word} in {sketch}"
            path.append(children[alternatives[0]])


@pages
def test_commands_that_are_shown_can_be_typed(page: str) -> None:
    for words in shell_lines(page):
        if Path(words[0]).name != "intarsia":
            continue
        if SKETCHED.search(" ".join(words)):
            glance(" ".join(words))
        else:
            parse(words)
    for code in inline_code(page):
        if code.startswith("intarsia "):
            glance(code)


def test_a_command_that_is_wrong_is_noticed() -> None:
    for line in ("intarsia simulat x.toml", "intarsia simulate", "intarsia runs show 1 --rank 3"):
        with pytest.raises(click.ClickException):
            parse(line.split())
    for line in ("intarsia adapters expert REF", "intarsia demo [--rounds N]"):
        with pytest.raises(AssertionError):
            glance(line)
    glance("intarsia demo | simulate | aggregate | adapters … | runs …")


@pages
def test_python_compiles(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block, page, "exec")


@pages
def test_python_names_that_are_named_are_there(page: str) -> None:
    for code in inline_code(page):
        if match := re.fullmatch(r"(intarsia_\w+(?:\.\w+)+)(?::(\w+))?", code):
            module = importlib.import_module(match[1])
            assert match[2] is None or hasattr(module, match[2]), code


@pages
def test_configurations_are_ones(page: str) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block)
        tables.setdefault("model", {"base": "base", "task": "causal-lm"})
        tables.setdefault("data", {"train": "train.jsonl"})
        configuration_from_mapping(tables)


@pages
def test_keys_that_are_named_are_there(page: str) -> None:
    required = {"model": {"base": "base", "task": "causal-lm"}, "data": {"train": "train.jsonl"}}
    tables = configuration_from_mapping(required).as_mapping()
    keys = rf"(?:--set )?({'|'.join(tables)})\.(\w+)(?: ?=.*)?"
    # A message's type and files are written in the same way.
    others = {"alone", "jsonl", "toml", "csv"}
    for code in inline_code(page):
        match = re.fullmatch(keys, code)
        assert match is None or match[2] in {*tables[match[1]], *others}, code


def strings_of(node: ast.AST) -> set[str]:
    return {
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


def reasons_in(path: Path) -> set[str]:
    """Short words with which a room refuses, fails or excuses a client."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {text for text in strings_of(tree) if re.fullmatch(r"[a-z]+(-[a-z]+)+", text)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "RefusedUpdate":
            found |= strings_of(node.args[0])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
            found |= {text for text in strings_of(node.value) if re.fullmatch(r"[a-z-]+", text)}
    return found


def test_the_reasons_of_refusal_are_those_of_the_source() -> None:
    rooms = [
        FEDERATION / "admission.py", FEDERATION / "strategy.py", FEDERATION / "rounds.py",
        REGISTRY / "answers.py", REGISTRY / "participations.py",
    ]  # fmt: skip
    in_source = set[str]().union(*map(reasons_in, rooms))
    text = TEXTS["docs/federation.md"].partition("## Admission")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    told = {
        word for cells in rows for cell in cells[:-1] for word in re.findall(r"`([\w-]+)`", cell)
    }
    assert told == in_source


@pages
def test_no_page_names_a_place_on_a_machine(page: str) -> None:
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", TEXTS[page])


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) < 220


def test_the_readmes_server_app_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks("README.md", "python") if "ServerApp" in block)
    (hub,) = set(re.findall(r'^BASE = (".+")$', code, re.M))
    namespace: dict[str, Any] = {"__name__": "server_app"}
    exec(compile(code.replace(hub, repr(str(BASE))), "README.md", "exec"), namespace)  # noqa: S102 - our own page
    monkeypatch.chdir(tmp_path)
    clients = []
    for node, name in ((1, "north"), (2, "south")):
        lines = [json.dumps({"text": f"Return note {n} of {name} as a string."}) for n in range(8)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
        config = {"client": name, "data": f"{name}.jsonl", "test-data": f"{name}.jsonl"}
        clients.append(VirtualClient(node_id=node, node_config=config))
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with InProcessGrid("intarsia_client.app:app", clients) as grid:
        namespace["app"](grid, context)
    assert read_adapter(Path("clinics-adapter")).rank > 16
