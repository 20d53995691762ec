"""``intarsia groups federate`` and ``admit``: what is typed, what is shown, and every refusal."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from intarsia_client.base_model import linear_modules, load_base
from intarsia_client.peft_files import encode_adapter, write_encoded
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_platform.cli.main import main
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.groups.signing import SigningKey, sign
from intarsia_platform.home import Home
from intarsia_platform.registry.journal import RunJournal
from safetensors.numpy import load, save

SHARD = "sha256:" + "5" * 64


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def line(self):
        (line,) = self.err.splitlines()
        return line


@pytest.fixture
def intarsia(capsys, monkeypatch, tmp_path):
    """Runs a command line of groups in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([*map(str, words), "--home", "home"])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def stored():
    """Blobs in the home's store."""
    return [path for path in Path("home").glob("store/sha256/*/*") if path.is_file()]


# Federations ------------------------------------------------------------------------------------


@pytest.fixture
def federate(intarsia, write_study, tmp_path):
    study = write_study(tmp_path / "study")

    def run(*more, name="wards", clients="north,south"):
        return intarsia("groups", "federate", name, "--from", study, "--clients", clients,
                        "--encoder", "base", *more)  # fmt: skip

    return run


def test_a_federation_is_typed_shown_and_taken_up_again(intarsia, federate, write_study, tmp_path):
    ended = federate("--label", "medical", "--level", 2, "--json", "made.json")
    assert ended.code == 0, ended.err
    assert "round 2 of 2: 2 clients" in ended.err
    made = json.loads(Path("made.json").read_text())
    assert (made["version"], made["records"], made["labels"]) == (1, 12, ["medical"])
    assert made["clients"] == ["north", "south"] and made["level"] == 2
    assert [one["accepted"] for one in made["rounds"]] == [2, 2] and made["unchanged"] is False
    shown = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert shown["trained"] == "by    north (6), south (6)"
    again = json.loads(federate("--json", "-").out)
    assert again["unchanged"] is True and again["adapter"] == made["adapter"]
    # New records arrive at a client; rights that are not named stay.
    texts = {"north": [f"a note of the north {n}" for n in range(7)],
             "south": [f"a note of the south {n}" for n in range(6)]}  # fmt: skip
    write_study(tmp_path / "study", texts)
    changed = json.loads(federate("--owner", "ada", "--json", "-").out)
    assert (changed["version"], changed["records"]) == (2, 13)
    assert (changed["level"], changed["owner"], changed["labels"]) == (2, "ada", ["medical"])
    shown = json.loads(intarsia("groups", "show", "wards", "--json", "-").out)
    assert shown == {key: changed[key] for key in shown}
    lineage = json.loads(intarsia("adapters", "lineage", "wards", "--json", "-").out)
    assert sum(one["kind"] == "shard" for one in lineage["artefacts"]) == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "labels: none; give at least one with --label"),
        (("--label", "x", "--set", "data.partition=iid"), "data.partition: iid"),
        (("--label", "x", "--set", "privacy.unit=example"), "privacy.unit: example"),
        (("--label", "x", "--set", "federation.rounds=0"), "federation.rounds"),
        (("--label", "x", "--grid", "moon"), "engine.grid"),
        (("--label", "x", "--descriptor", "moon"), "moon"),
        (("--label", "x", "--source", "moon"), "source: moon"),
        (("--label", "x", "--expires", "soon"), "--expires"),
        (("--label", "x", "--clients", "moon"), "--clients: moon"),
    ],
)
def test_a_federation_that_cannot_be_is_one_line(federate, words, part):
    ended = federate(*words)
    assert ended.code == 2 and part in ended.line
    assert stored() == [] and not Path("home/federations").exists()


def test_a_federation_needs_a_configuration_and_can_be_given_up(intarsia, federate, write_study,
                                                               tmp_path):  # fmt: skip
    assert "--from: none" in intarsia("groups", "federate", "wards", "--label", "x").line
    few = {"north": ["one note", "another note"], "south": ["a third note"]}
    write_study(tmp_path / "study", few)
    ended = federate("--label", "x")
    assert ended.code == 5 and "at least 5 are needed" in ended.err.splitlines()[-1]
    assert Path("home/federations").exists()
    given_up = intarsia("groups", "federate", "wards", "--give-up", "--json", "-")
    assert json.loads(given_up.out) == {"group": "wards", "given_up": True}
    assert not Path("home/federations").exists()


def test_groups_described_otherwise_are_warned_of(intarsia, federate, llama):
    Path("notes.jsonl").write_text('{"text": "a note"}\n' * 3)
    added = intarsia("groups", "add", "notes", "--base", llama, "--data", "notes.jsonl",
                     "--label", "x", "--encoder", "base", "--epochs", 1)  # fmt: skip
    assert added.code == 0, added.err
    assert "warning: notes is described otherwise than wards" in federate("--label", "x").err
    ended = intarsia("groups", "update", "wards", "--add", "notes.jsonl")
    assert ended.code == 2 and "its records lie with its clients" in ended.line


def test_what_an_interruption_says_goes_on_with_the_same_work(
    intarsia, federate, tmp_path, monkeypatch
):
    whole = json.loads(federate("--label", "x", "--level", 1, "--json", "-").out)
    shutil.rmtree("home")
    publish = RunJournal.publish

    def interrupted(self, number, **options):
        publish(self, number, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunJournal, "publish", interrupted)
    ended = federate("--label", "x", "--level", 1)
    assert ended.code == 130
    line = ended.err.splitlines()[-1]
    assert "interrupted in round 1; no round is finished yet; continue with: " in line
    words = shlex.split(line.partition("continue with: ")[2])
    assert words[:4] == ["intarsia", "groups", "federate", "wards"]
    monkeypatch.setattr(RunJournal, "publish", publish)
    # What is typed again must not be other work, which would begin anew.
    ended = intarsia(*words[1:], "--json", "-")
    assert json.loads(ended.out)["adapter"] == whole["adapter"]
    assert "1 of them finished already" in ended.err


# Admission --------------------------------------------------------------------------------------


def adapter_of(base, rank=2, scale=0.3):
    generator = np.random.default_rng(0)
    modules = {
        name: LowRankFactors(
            a=generator.normal(0, 0.2, (rank, d_in)).astype(np.float32),
            b=generator.normal(0, scale, (d_out, rank)).astype(np.float32),
            scaling=2.0,
        )
        for name, (d_out, d_in) in linear_modules(base, ["q_proj", "v_proj"]).items()
    }
    return Adapter(base="/somewhere/at/the/site", task=base.task, modules=modules)


@pytest.fixture
def base(llama):
    return load_base(llama, task="causal-lm")


@pytest.fixture
def key(tmp_path):
    """The site's own key."""
    return SigningKey.open(tmp_path / "site-keys")


@pytest.fixture
def signed(base, key, tmp_path):
    """Writes a folder at the site and signs it."""

    def write(encoded=None, manifest=None):
        folder = tmp_path / "cardiology"
        write_encoded(folder, encoded or encode_adapter(adapter_of(base)), manifest=manifest)
        (tmp_path / "cardiology.sig").write_bytes(sign(folder, key))
        return folder

    return write


@pytest.fixture
def admit(intarsia, key, llama):
    def run(*more, folder="cardiology", labels=("heart",), shard=SHARD, public=key.public):
        words = [word for label in labels for word in ("--label", label)]
        words += ["--shard", shard] if shard else []
        return intarsia("groups", "admit", folder, "--signature", "cardiology.sig",
                        "--public-key", public, "--base", llama, "--site", "north",
                        *words, *more)  # fmt: skip

    return run


def test_a_sites_adapter_is_let_in_with_labels_lineage_and_signature(
    intarsia, signed, admit, base, key, owned
):
    signed(manifest={"labels": ["site"], "base_digest": base.digest})
    ended = admit("--tenant", "acme", "--level", 3, "--json", "-")
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert (made["name"], made["labels"]) == ("cardiology", ["heart", "site"])
    assert (made["tenant"], made["level"], made["rank"]) == ("acme", 3, 2)
    assert made["base"] == base.base and made["base_digest"] == base.digest
    lineage = json.loads(intarsia("adapters", "lineage", "cardiology", "--json", "-").out)
    found = {one["kind"]: one for one in lineage["artefacts"]}
    assert found["shard"]["digest"] == SHARD and found["shard"]["details"] == {"client": "north"}
    assert found["base"]["digest"] == base.digest and found["imported"]["digest"] == made["adapter"]
    home = Home.open(Path("home"))
    with open_groups(home) as lifecycle:
        encoded = lifecycle.groups.admitted(made["adapter"], lifecycle.key)
        assert encoded.digest == made["adapter"] and lifecycle.key.digest != key.digest
    assert len(stored()) == len(owned(home)) == 4
    assert intarsia("adapters", "export", "cardiology", "--out", "out").code == 0
    assert json.loads(Path("out/intarsia.json").read_text())["data"] == {"signed_by": key.digest}
    assert "is here already, as cardiology" in admit("--name", "again").line
    # Admitted again it gets more labels and a new owner, and nothing of it gets wider.
    again = intarsia("groups", "admit", "cardiology", "--label", "more", "--owner", "ada",
                     "--level", 1, "--json", "-")  # fmt: skip
    changed = json.loads(again.out)
    assert changed["labels"] == ["heart", "more", "site"]
    assert (changed["owner"], changed["level"], changed["tenant"]) == ("ada", 3, "acme")
    assert len(stored()) == 4


def test_a_name_that_is_taken_is_refused(signed, admit, base, tmp_path):
    signed()
    assert admit().code == 0
    shutil.rmtree(tmp_path / "cardiology")
    signed(encode_adapter(adapter_of(base, rank=3)))
    ended = admit()
    assert ended.code == 2 and "cardiology is taken" in ended.line


def test_what_the_tool_of_others_signed_is_read(signed, admit, key, tmp_path):
    folder = signed()
    tool = Path(sys.executable).with_name("model_signing")
    done = subprocess.run(
        [tool, "sign", "key", folder, "--signature", tmp_path / "cardiology.sig",
         "--private_key", key.private],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert admit().code == 0


def infinite(base):
    encoded = encode_adapter(adapter_of(base))
    tensors = load(encoded.tensors)
    first = min(tensors)
    tensors[first] = np.full_like(tensors[first], np.nan)
    return replace(encoded, tensors=save(tensors, metadata={"format": "pt"}))


@pytest.mark.parametrize(
    ("make", "words", "code", "part"),
    [
        (infinite, {}, 2, "finite"),
        (lambda base: encode_adapter(adapter_of(base, scale=0.0)), {}, 2, "adds nothing"),
        (lambda base: encode_adapter(adapter_of(base, rank=5)), {"max": 4}, 2, "use at most 4"),
        (None, {"labels": ()}, 2, "labels: none"),
        (None, {"shard": ""}, 2, "lineage of cardiology: none"),
        (None, {"shard": "moon"}, 2, "--shard: moon"),
        (None, {"source": "moon"}, 2, "source: moon"),
        (None, {"level": -1}, 2, "level: -1"),
        (None, {"name": "auto"}, 2, "group name: auto"),
        (None, {"public": "nowhere.pub"}, 2, "--public-key: nowhere.pub"),
        (None, {"folder": "nowhere"}, 2, "adapter folder: nowhere"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    signed, admit, base, make, words, code, part
):
    signed(make(base) if make else None)
    words = dict(words)
    given = {key: words.pop(key) for key in ("labels", "shard", "public", "folder") if key in words}
    more = [("--max-rank" if key == "max" else f"--{key}", value) for key, value in words.items()]
    ended = admit(*(word for pair in more for word in pair), **given)
    assert ended.code == code and part in ended.line
    assert stored() == []


def test_an_adapter_of_another_base_is_refused(signed, admit, stories, base):
    signed(manifest={"base_digest": "sha256:" + "0" * 64})
    ended = admit()
    assert ended.code == 2 and "base of cardiology: sha256:000" in ended.line
    # One that says nothing of its base has other shapes.
    ended = admit("--base", stories)
    assert ended.code == 2 and stored() == []


def test_a_folder_that_is_not_signed_is_refused(intarsia, signed):
    signed()
    ended = intarsia("groups", "admit", "cardiology", "--label", "x")
    assert ended.code == 2 and "home" in ended.line
    Path("home").mkdir()
    ended = intarsia("groups", "admit", "cardiology", "--label", "x")
    assert ended.code == 2
    assert "adapter folder cardiology: not signed; sign it where it was trained" in ended.line
    ended = intarsia("groups", "admit", "nowhere", "--label", "x")
    assert ended.code == 2 and "adapter: nowhere" in ended.line
    ended = intarsia("groups", "admit", "cardiology", "--signature", "cardiology.sig")
    assert ended.code == 2 and "--public-key: none" in ended.line


def test_another_key_and_another_byte_are_noticed(signed, admit, tmp_path):
    folder = signed()
    other = SigningKey.open(tmp_path / "other-keys")
    ended = admit(public=other.public)
    assert ended.code == 6 and "another key's, or altered" in ended.line
    (folder / "README.md").write_text("added")
    ended = admit()
    assert ended.code == 6 and "README.md" in ended.line
    (folder / "README.md").unlink()
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\0\0\0")
    ended = admit()
    assert ended.code == 6 and "is not what was signed" in ended.line
    Path("cardiology.sig").write_text("{}")
    ended = admit()
    assert ended.code == 6 and "cannot be read" in ended.line
    Path("cardiology.sig").unlink()
    ended = admit()
    assert ended.code == 2 and "--signature: cardiology.sig" in ended.line
    assert stored() == []


def test_a_manifest_of_another_adapter_is_noticed(signed, admit):
    signed(manifest={"digest": "sha256:" + "1" * 64})
    ended = admit()
    assert ended.code == 6 and "speaks of sha256:111" in ended.line and stored() == []


def test_a_registered_adapter_is_let_in_by_its_name(intarsia, signed, admit, llama):
    signed()
    # As a federation's result lies in the registry: known, and not yet admitted.
    encoded = adapter_of(load_base(llama, task="causal-lm"), rank=3)
    write_encoded(Path("joint"), encode_adapter(replace(encoded, base=llama)), manifest=None)
    assert intarsia("adapters", "import", "joint", "--label", "own").code == 0
    ended = intarsia("groups", "admit", "joint", "--label", "x")
    assert ended.code == 2 and "lineage of joint: none" in ended.line
    assert admit("--tenant", "acme").code == 0
    ended = intarsia("groups", "admit", "joint", "--source", "cardiology", "--tenant", "acme",
                     "--json", "-")  # fmt: skip
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert made["labels"] == ["heart", "own"]
    ended = intarsia("groups", "admit", "joint", "--tenant", "other")
    assert ended.code == 2 and "its sources belong to acme" in ended.line
