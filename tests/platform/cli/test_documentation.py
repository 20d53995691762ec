"""docs/command-line.md against the commands and the configuration."""

import json
import re
import tomllib
from pathlib import Path

import click
from intarsia_platform.cli.main import app
from intarsia_platform.configuration import configuration_from_mapping
from typer.main import get_command

PAGE = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_page_names_every_command_and_option():
    waiting: list[tuple[str, click.Command]] = [("intarsia", get_command(app))]
    for words, command in waiting:
        children = getattr(command, "commands", {})
        waiting += [(f"{words} {name}", child) for name, child in children.items()]
        if not children:
            assert re.search(rf"^{words}( |$)", PAGE, re.M), words
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in PAGE, parameter.opts


def test_the_configuration_on_the_page_is_every_key_with_its_default():
    (text,) = blocks("toml")
    written = tomllib.loads(text.replace("# test =", "test ="))
    required = {
        "model": {"base": "path/or/hub-id", "task": "causal-lm"},
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
    }
    assert written == configuration_from_mapping(required).as_mapping()


def test_the_examples_of_json_are_json():
    for block in blocks("json"):
        json.loads(block)
