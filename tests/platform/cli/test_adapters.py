import json
import shutil
from pathlib import Path

import pytest
from intarsia_client.peft_files import adapter_digest, read_adapter, read_encoded


@pytest.fixture
def imported(intarsia, saved_by_peft):
    """Two adapters in the home ``home``; gives what the import of the first one wrote."""
    words = ("--home", "home", "adapters", "import")
    first = intarsia(*words, saved_by_peft["mixed"], "--label", "b", "--label", "a", "--json", "-")
    assert (first.code, first.err) == (0, "")
    second = intarsia(*words, saved_by_peft["four"], "--name", "team/four")
    assert (second.code, second.err) == (0, "") and "team/four" in second.out
    return json.loads(first.out)


def test_an_import_says_what_came_in(imported, saved_by_peft):
    assert imported["name"] == "mixed"
    assert imported["digest"] == adapter_digest(read_adapter(saved_by_peft["mixed"]))
    assert imported["rank"] == 32 and imported["task"] == "causal-lm"
    assert imported["labels"] == ["a", "b"] and imported["run"] is None
    assert imported["base"] == str(saved_by_peft["base"])


def test_the_list_has_all_of_them(intarsia, imported):
    ended = intarsia("adapters", "list", "--home", "home", "--json", "list.json")
    assert (ended.code, ended.err) == (0, "")
    listed = json.loads(Path("list.json").read_text())["adapters"]
    assert [entry["name"] for entry in listed] == ["mixed", "team/four"]
    assert listed[0] == imported
    rows = [line.split() for line in ended.out.splitlines()]
    assert [row[:3] for row in rows[2:]] == [
        ["mixed", imported["digest"][:19], "32"],
        ["team/four", listed[1]["digest"][:19], "4"],
    ]


def test_one_is_found_by_its_digest_s_beginning(intarsia, imported):
    ended = intarsia("adapters", "show", imported["digest"][7:15], "--home", "home", "--json", "-")
    shown = json.loads(ended.out)
    assert {name: shown[name] for name in imported} == imported
    assert shown["modules"]["model.layers.0.self_attn.q_proj"] == 8
    assert shown["modules"]["model.layers.1.mlp.up_proj"] == 2
    assert shown["parameters"] > 1000 and shown["head"] == []


def test_an_export_is_what_was_imported(intarsia, imported, tmp_path):
    ended = intarsia("adapters", "--home", "home", "export", "mixed", "--out", "out", "--json", "-")
    assert json.loads(ended.out)["path"] == str(tmp_path / "out")
    assert adapter_digest(read_adapter(tmp_path / "out")) == imported["digest"]
    again = intarsia("adapters", "--home", "other", "import", "out", "--json", "-")
    assert json.loads(again.out)["digest"] == imported["digest"]


def test_an_export_never_overwrites(intarsia, imported, tmp_path):
    assert intarsia("adapters", "--home", "home", "export", "mixed", "--out", "out").code == 0
    before = read_encoded(tmp_path / "out")
    ended = intarsia("adapters", "--home", "home", "export", "team/four", "--out", "out")
    assert ended.code == 2 and "choose a folder that does not exist or is empty" in ended.line
    assert read_encoded(tmp_path / "out") == before


def test_the_lineage_of_an_imported_adapter_is_itself(intarsia, imported):
    ended = intarsia("adapters", "lineage", "mixed", "--home", "home", "--json", "lineage.json")
    assert ended.out == f"mixed imported {imported['digest'][:19]}\n"
    lineage = json.loads(Path("lineage.json").read_text())
    assert lineage["adapter"] == imported["digest"] and lineage["edges"] == []
    assert [entry["kind"] for entry in lineage["artefacts"]] == ["imported"]


def test_a_removed_adapter_is_gone_and_the_other_one_stays(intarsia, imported):
    assert intarsia("adapters", "remove", "mixed", "--home", "home").code == 0
    ended = intarsia("adapters", "show", "mixed", "--home", "home")
    assert ended.code == 2 and ended.line.endswith("adapter: mixed; see `intarsia adapters list`")
    assert intarsia("adapters", "show", "team/four", "--home", "home").code == 0


def test_bytes_that_were_altered_are_not_shown(intarsia, imported):
    (blob,) = [
        path for path in Path("home/store").rglob("*") if path.is_file()
        and path.stat().st_size == max(p.stat().st_size for p in Path("home/store").rglob("*"))
    ]  # fmt: skip
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    ended = intarsia("adapters", "show", "mixed", "--home", "home")
    assert ended.code == 6 and ended.out == ""


def test_a_look_at_a_home_that_is_not_there_makes_none(intarsia):
    ended = intarsia("adapters", "list", "--home", "nowhere")
    assert ended.code == 2 and "nowhere; run a demo or a simulation first" in ended.line
    assert not Path("nowhere").exists()


def test_the_home_comes_from_the_environment_unless_it_is_given(intarsia, imported, monkeypatch):
    monkeypatch.setenv("INTARSIA_HOME", "home")
    assert "team/four" in intarsia("adapters", "list").out
    assert intarsia("adapters", "list", "--home", "nowhere").code == 2


def test_a_name_that_is_taken_is_refused(intarsia, imported, saved_by_peft):
    words = ("adapters", "import", saved_by_peft["sixteen"], "--name", "mixed", "--home", "home")
    ended = intarsia(*words)
    assert ended.code == 2 and "mixed is taken by another adapter" in ended.line


def test_control_characters_of_strangers_reach_no_terminal(intarsia, saved_by_peft, tmp_path):
    strange = tmp_path / "strange"
    shutil.copytree(saved_by_peft["four"], strange)
    settings = json.loads((strange / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "evil\x1b[2J[red]base[/red]\nsecond"
    (strange / "adapter_config.json").write_text(json.dumps(settings))
    ended = intarsia("adapters", "import", strange, "--home", "home")
    assert ended.code == 0
    for words in (("list",), ("show", "strange")):
        out = intarsia("adapters", *words, "--home", "home").out
        assert "\x1b" not in out and r"evil\x1b[2J[red]base[/red] second" in out
