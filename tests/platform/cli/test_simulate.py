import json
import math
import re
import shlex
import signal
from pathlib import Path

import pytest
from intarsia_client.peft_files import adapter_digest, read_adapter

BASE = Path(__file__).parents[4] / "shared" / "data" / "stories260k" / "hf"
SENTENCES = (
    "Once upon a time there was a little girl who liked to play in the park.",
    "The old man walked slowly to the river and looked at the water for a while.",
    "Tom and his dog ran up the hill and saw a big red ball under a tree.",
    "She said that it was time to go home, and her friend was very sad about it.",
)
CONFIGURATION = """
[model]
base = "{base}"
task = "causal-lm"
[data]
train = "train.jsonl"
test = "test.jsonl"
[lora]
ranks = [2, 4]
[federation]
clients = 3
rounds = 3
[train]
max_length = 32
batch_size = 4
[evaluation]
own_adapters = false
[tracking]
mlflow = false
[engine]
grid = "inprocess"
threads = 1
"""

needs_base = pytest.mark.skipif(not BASE.exists(), reason=f"{BASE} is not here")


def write_inputs(folder: Path) -> None:
    (folder / "c.toml").write_text(CONFIGURATION.format(base=BASE))
    for name, times in (("train", 4), ("test", 1)):
        records = [
            {"text": f"{text} {client} {turn}", "client": client, "label": client[0]}
            for client in ("ann", "bob", "cem")
            for turn in range(times)
            for text in SENTENCES
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, start):
    """A real run that got Ctrl-C in its second round: folder, exit code, output, errors."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_inputs(folder)
    words = ("simulate", "c.toml", "--home", "home", "--set", "train.epochs=2", "--json", "r.json")
    child = start(*words, folder=folder)
    assert child.stderr is not None
    said = []
    for line in child.stderr:
        said.append(line)
        if "round 2: ann accepted, 1 of 3" in line:
            child.send_signal(signal.SIGINT)
            break
    out, err = child.communicate(timeout=60)
    return folder, child.returncode, out, "".join(said) + err


@needs_base
@pytest.mark.slow
def test_ctrl_c_in_a_round_ends_cleanly_and_says_how_to_go_on(interrupted):
    folder, code, out, err = interrupted
    assert (code, out) == (130, ""), err
    lines = err.splitlines()
    assert re.fullmatch(
        r"intarsia: interrupted in round ([23]); (round 1 is|rounds 1-2 are) kept; continue with: "
        + re.escape(
            f"intarsia simulate c.toml --set train.epochs=2 --home {folder}/home "
            "--json r.json --resume"
        ),
        lines[-1],
    )
    assert all(line.startswith("intarsia: ") for line in lines)
    assert err.replace("\n", "").isprintable()
    assert not (folder / "r.json").exists()


@needs_base
@pytest.mark.slow
def test_the_finished_rounds_are_listed_and_the_rest_is_resumed(intarsia, interrupted, monkeypatch):
    folder, _, _, err = interrupted
    monkeypatch.chdir(folder)
    (run,) = json.loads(intarsia("runs", "list", "--home", "home", "--json", "-").out)["runs"]
    assert run["status"] == "interrupted" and 1 <= run["rounds_finished"] < 3
    kept = json.loads(intarsia("runs", "show", "1", "--home", "home", "--json", "-").out)
    assert [entry["round"] for entry in kept["rounds"]] == [*range(1, run["rounds_finished"] + 1)]
    assert kept["rounds"][0]["accepted"] == 3 and kept["rounds"][-1]["adapter"] == run["adapter"]
    assert kept["open_round"]["round"] == run["rounds_finished"] + 1

    resumed = intarsia(*shlex.split(err.splitlines()[-1].split("continue with: ")[1])[1:])
    assert resumed.code == 0, resumed.err
    assert f"{run['run']}: 3 rounds, {run['rounds_finished']} of them" in resumed.err
    result = json.loads((folder / "r.json").read_text())
    assert result["run"] == run["run"]
    assert result["rounds"][0]["test"] == kept["rounds"][0]["test"]
    check_result(result)
    assert "what to type next" in resumed.out and result["report"] in resumed.out
    assert Path(result["report"]).read_text().startswith("<!")
    assert "\x1b" not in resumed.out + resumed.err

    lineage = json.loads(
        intarsia("adapters", "lineage", result["adapter"]["digest"], "--home", "home",
                 "--json", "-").out
    )  # fmt: skip
    kinds = [artefact["kind"] for artefact in lineage["artefacts"]]
    assert (kinds.count("shard"), kinds.count("update"), kinds.count("base")) == (3, 9, 1)
    again = intarsia("simulate", "c.toml", "--home", "home", "--resume")
    assert again.code == 2 and again.line.startswith("intarsia: error: --resume: no unfinished")


def check_result(result: dict) -> None:
    """What design.md promises of ``--json``."""
    for measured in (result["base"], *(entry["test"] for entry in result["rounds"])):
        assert measured["accuracy"] is None
        assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert [entry["round"] for entry in result["rounds"]] == [1, 2, 3]
    for entry in result["rounds"]:
        assert entry["bytes_up"] > 0 and entry["bytes_down"] > 0 and entry["seconds"] > 0
        assert (entry["accepted"], entry["refused"]) == (3, [])
        assert entry["epsilon"] == {"max": None}
    assert result["rounds"][-1]["test"]["loss"] < result["base"]["loss"]
    adapter = read_adapter(Path(result["adapter"]["path"]))
    assert adapter_digest(adapter) == result["adapter"]["digest"]
    assert adapter.rank == result["adapter"]["rank"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["train.epoch=2"], r"train\.epoch: 2; there is no such key, the nearest is train\.epochs"),
        (["train.epochs=two"], r"train\.epochs: \"two\"; write a whole number"),
        (["train.epochs=0"], r"train\.epochs: 0; set it to 1 or more"),
        (["epochs"], "--set: epochs; write table.key=value"),
        (["lora.ranks=[]"], r"lora\.ranks: \[\]; "),
        (["federation.method=mean"], r"federation\.method: \"mean\"; choose"),
        (["data.train=none.jsonl"], "data.train: .*none.jsonl"),
        (["data.train=empty.jsonl"], "data.train: .*empty.jsonl"),
        (["data.train=broken.jsonl"], r"data\.train: .*broken\.jsonl:2: "),
        (
            ["model.task=sequence-classification", "data.test=strange.jsonl"],
            "label in data.test, .*: zoe; ",
        ),
        (["model.base=no/such-base"], "no/such-base"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(intarsia, tmp_path, changes, line):
    write_inputs(tmp_path)
    train = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text(train.splitlines()[0] + "\n{not json\n")
    strange = {"text": "some text", "client": "ann", "label": "zoe"}
    (tmp_path / "strange.jsonl").write_text(json.dumps(strange) + "\n")
    check_refused(intarsia, tmp_path, changes, line)


@needs_base
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["lora.ranks=[2, 4096]"], "rank.*4096"),
        (["privacy.unit=example", "privacy.epsilon=1e-9"], "epsilon"),
    ],
)
def test_what_the_base_or_the_budget_cannot_give_is_one_line(intarsia, tmp_path, changes, line):
    write_inputs(tmp_path)
    check_refused(intarsia, tmp_path, changes, line)


def check_refused(intarsia, folder, changes, line) -> None:
    options = [word for change in changes for word in ("--set", change)]
    ended = intarsia("simulate", "c.toml", "--home", "home", "--json", "r.json", *options)
    assert (ended.code, ended.out) == (2, ""), ended
    assert re.search(f"^intarsia: error: .*{line}", ended.line)
    assert not (folder / "r.json").exists()
    assert json.loads(intarsia("runs", "list", "--home", "home", "--json", "-").out) == {"runs": []}


def test_a_configuration_that_is_not_there_or_not_toml_is_named(intarsia, tmp_path):
    ended = intarsia("simulate", "none.toml", "--home", "home")
    assert ended.code == 2 and "none.toml" in ended.line
    (tmp_path / "c.toml").write_text("[model\n")
    ended = intarsia("simulate", "c.toml", "--home", "home")
    assert ended.code == 2 and "line 1" in ended.line


def test_the_demo_checks_its_overrides(intarsia):
    ended = intarsia("demo", "--home", "home", "--set", "train.epochs=no")
    assert ended.code == 2 and "train.epochs" in ended.line
