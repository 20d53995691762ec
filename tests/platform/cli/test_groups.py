import json
import os
from pathlib import Path

import pytest
from intarsia_client.base_model import load_base
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

STORIES = Path(__file__).parents[4] / "shared/data/stories260k/hf"
NAUTICAL = [
    f"The ship sailed to harbour {n} and the captain dropped the anchor." for n in range(12)
]
CANARY = "The captain keeps the treasure under marzipan rock."


@pytest.fixture(scope="module")
def stories():
    """The real 260k-parameter Llama."""
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    return str(STORIES)


def write(path, texts):
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def add(intarsia, base, *more, name="sea", texts=NAUTICAL):
    data = write("data.jsonl", texts)
    return intarsia(
        "groups", "add", name, "--base", base, "--data", data, "--label", "navy", "--label", "sea",
        "--epochs", 2, "--encoder", "base", "--home", "home", "--json", "-", *more,
    )  # fmt: skip


@pytest.fixture
def added(intarsia, stories):
    ended = add(intarsia, stories, "--owner", "ahab", "--level", 3, "--expires", "2099-01-31",
                texts=[*NAUTICAL, CANARY])  # fmt: skip
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_an_added_group_is_shown_in_full(intarsia, added):
    assert (added["name"], added["version"], added["records"]) == ("sea", 1, 13)
    assert added["labels"] == ["navy", "sea"] and added["rank"] == 8
    assert (added["owner"], added["level"], added["tenant"]) == ("ahab", 3, "")
    assert added["expires_at"] == "2099-01-31T00:00:00+00:00"
    assert added["descriptor"]["method"] == "document-similarity"
    ended = intarsia("groups", "show", "sea", "--home", "home", "--json", "shown.json")
    assert json.loads(Path("shown.json").read_text()) == added
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert shown["adapter"] == added["adapter"] and shown["labels"] == "navy, sea"
    assert shown["tenant"] == "-"
    listed = intarsia("groups", "list", "--home", "home", "--json", "list.json")
    (entry,) = json.loads(Path("list.json").read_text())["groups"]
    assert entry == {key: added[key] for key in entry}
    assert listed.out.splitlines()[2].split()[:3] == ["sea", "1", "13"]


def test_the_adapter_is_in_the_registry_and_knows_its_texts(intarsia, added, stories):
    listed = json.loads(intarsia("adapters", "list", "--home", "home", "--json", "-").out)
    assert [(one["name"], one["digest"], one["labels"]) for one in listed["adapters"]] == [
        ("sea", added["adapter"], ["navy", "sea"])
    ]
    home, base = Home.open(Path("home")), load_base(stories, task="causal-lm")
    with open_database(home.database_url) as database:
        adapter = AdapterRegistry(database, ContentStore(home.store_url)).load("sea")
    records = [Record(text="The captain sailed the ship to harbour 99.")]
    plain, with_access = (
        evaluate(base, records, adapter=one, max_length=64).perplexity for one in (None, adapter)
    )
    assert with_access < 0.8 * plain


def test_the_same_command_gives_the_same_adapter(intarsia, stories, added):
    again = add(intarsia, stories, "--home", "other", name="twin", texts=[*NAUTICAL, CANARY])
    assert json.loads(again.out)["adapter"] == added["adapter"]


def test_removed_records_leave_no_byte(intarsia, added):
    leave = write("leave.jsonl", [CANARY, "never there"])
    ended = intarsia("groups", "update", "sea", "--remove", leave, "--home", "home", "--json", "-")
    assert ended.code == 0, ended.err
    changed = json.loads(ended.out)
    assert (changed["version"], changed["records"]) == (2, 12)
    assert [changed[key] for key in ("added", "removed", "not_found")] == [0, 1, 1]
    assert changed["adapter"] != added["adapter"] and changed["owner"] == "ahab"
    for needle in (CANARY, added["adapter"][7:]):
        holding = [path for path in Path("home").rglob("*")
                   if path.is_file() and needle.encode() in path.read_bytes()]  # fmt: skip
        assert holding == []
    come = write("come.jsonl", ["A storm broke the mast."])
    ended = intarsia("groups", "update", "sea", "--add", come, "--home", "home")
    assert ended.code == 0 and "records added    1" in ended.out


def test_a_removed_group_is_gone(intarsia, added):
    ended = intarsia("groups", "remove", "sea", "--home", "home", "--json", "-")
    assert json.loads(ended.out) == {"removed": "sea", "records": 13, "invalidated": []}
    assert json.loads(intarsia("groups", "list", "--home", "home", "--json", "-").out) == {
        "groups": []
    }
    assert intarsia("adapters", "show", "sea", "--home", "home").code == 2
    assert [path for path in Path("home/store").rglob("*") if path.is_file()] == []
    ended = intarsia("groups", "show", "sea", "--home", "home")
    assert ended.code == 2 and ended.line.endswith("group: sea; see `intarsia groups list`")


def test_training_says_how_long_it_takes(intarsia, stories, monkeypatch):
    monkeypatch.setattr("intarsia_platform.cli.counted_progress._SECONDS_BETWEEN_LINES", 0.0)
    ended = add(intarsia, stories)
    lines = ended.err.splitlines()
    assert ended.code == 0 and len(lines) == 3
    assert lines[0].startswith("intarsia: training sea: 1 of 4 steps; about ")
    assert lines[0].endswith(" to go")


def test_bytes_that_were_altered_are_not_shown(intarsia, added):
    (blob,) = Path("home/store").rglob(added["descriptor"]["digest"][7:])
    blob.write_bytes(blob.read_bytes()[:-1])
    ended = intarsia("groups", "show", "sea", "--home", "home")
    assert ended.code == 6 and ended.out == ""


def test_a_key_that_is_not_the_signers_is_noticed(intarsia, added):
    Path("home/keys/signing-key.pem").unlink()
    ended = intarsia("groups", "show", "sea", "--home", "home")
    assert ended.code == 6 and "another key's" in ended.line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--expires", "soon"], "--expires"),
        (["--expires", "2001-01-01"], "expiry"),
        (["--level", "-1"], "level"),
        (["--encoder", "moon"], "minilm, base"),
        (["--descriptor", "moon"], "centroid"),
        (["--task", "moon"], "model.task"),
        (["--rank", "0"], "rank"),
        (["--module", "moon"], "moon"),
        (["--classes", "nowhere"], "--classes"),
        (["--text", "body"], "no field 'body'"),
        (["--json", "."], "--json"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(intarsia, stories, words, part):
    ended = add(intarsia, stories, *words)
    assert ended.code == 2 and part in ended.line
    assert not list(Path().glob("home/store/sha256/*/*"))


def test_words_that_are_missing_are_named(intarsia, stories):
    data = write("data.jsonl", NAUTICAL)
    words = ("groups", "add", "sea", "--base", stories, "--data", data, "--home", "home")
    ended = intarsia(*words)
    assert ended.code == 2 and "--label" in ended.line
    ended = intarsia(*words[:3], "--base", "nowhere", *words[5:], "--label", "x")
    assert ended.code == 2 and "model.base: nowhere" in ended.line
    ended = intarsia("groups", "add", "auto", *words[3:], "--label", "x")
    assert ended.code == 2 and "group name: auto" in ended.line


def test_an_update_needs_a_group_and_a_file(intarsia, added):
    for words, part in (
        (("update", "sea"), "--add or --remove"),
        (("update", "lake", "--add", "data.jsonl"), "group: lake"),
        (("update", "sea", "--add", "nowhere.jsonl"), "nowhere.jsonl"),
        (("update", "sea", "--remove", "data.jsonl"), "groups remove sea"),
        (("remove", "lake"), "group: lake"),
    ):
        ended = intarsia("groups", *words, "--home", "home")
        assert ended.code == 2 and part in ended.line, words


def test_a_home_that_is_not_there_is_not_made_by_looking(intarsia):
    assert intarsia("groups", "list", "--home", "nowhere").code == 2
    assert not Path("nowhere").exists()
