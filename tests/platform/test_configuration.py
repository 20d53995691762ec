"""A configuration is read whole or refused with a line that names key, value and remedy."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from intarsia_client.assignment import PrivacyParameters, TrainingParameters
from intarsia_client.errors import InputError
from intarsia_platform.configuration import (
    SimulationConfiguration,
    configuration_from_mapping,
    read_configuration,
)
from intarsia_platform.configuration_tables import AUTO, ROBUST_RULES

LEAST = '[model]\nbase = "some/base"\ntask = "causal-lm"\n[data]\ntrain = "train.jsonl"\n'
WHOLE = """
[model]
base = "path/or/hub-id"
task = "sequence-classification"
[data]
train = "train.jsonl"
test = "test.jsonl"
text = "sentence"
label = "category"
client = "site"
partition = "dirichlet:0.5"
[lora]
target_modules = ["query", "value"]
ranks = [4, 8]
alpha_over_rank = 1
use_rslora = true
replan_rounds = 2
[federation]
method = "ledger"
clients = 10
rounds = 3
fraction = 0.5
seed = 7
deadline_seconds = 60
minimum_accepted = 2
start = "prefix"
broadcast_rank = 48
residual_rank = 12
upload = "int8"
download = "bfloat16"
max_examples = 500
[train]
epochs = 2
batch_size = 8
learning_rate = 1e-4
max_length = 64
schedule = "linear"
warmup = 0.1
weight_decay = 0.01
max_gradient_norm = 0
max_steps = 9
keep_optimizer = true
learning_rate_rank = 4
head_learning_rate = 0.05
[privacy]
unit = "example"
epsilon = 4
delta = 1e-6
max_grad_norm = 0.5
noise_multiplier = 1
[robust]
rule = "multi-krum"
max_norm = 2
byzantine = 1
root = "root.jsonl"
[resources]
memory_mb = [200, 400.5]
gflops = [5]
upload_mbps = [2.5]
download_mbps = [20]
round_seconds = 30
[engine]
grid = "inprocess"
workers = 4
gpus_per_worker = 1
threads = 3
[evaluation]
rounds = 2
clients = false
own_adapters = true
max_records = 100
[tracking]
mlflow = false
"""


def read(
    folder: Path, text: str, *overrides: str, methods: tuple[str, ...] | None = None
) -> SimulationConfiguration:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return read_configuration(path, overrides, methods=methods)


def refusal(
    folder: Path, text: str, *overrides: str, methods: tuple[str, ...] | None = None
) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, *overrides, methods=methods)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_everything_but_three_keys_has_the_documented_default(tmp_path: Path) -> None:
    configuration = read(tmp_path, LEAST)
    assert configuration.as_mapping() == {
        "model": {"base": "some/base", "task": "causal-lm"},
        "data": {
            "train": "train.jsonl", "test": None, "text": "text", "label": "label",
            "client": "client", "partition": "natural",
        },
        "lora": {
            "target_modules": "all-linear", "ranks": [4, 8, 16, 32], "alpha_over_rank": 2.0,
            "use_rslora": False, "replan_rounds": 0,
        },
        "federation": {
            "method": "ledger", "clients": 8, "rounds": 5, "fraction": 1.0, "seed": 0,
            "deadline_seconds": 3600.0, "minimum_accepted": 1, "start": "", "broadcast_rank": 0,
            "residual_rank": 256, "upload": "float32", "download": "float32", "max_examples": 0,
        },
        "train": dataclasses.asdict(TrainingParameters()),
        "privacy": dataclasses.asdict(PrivacyParameters()),
        "robust": {"rule": "none", "max_norm": 0.0, "byzantine": 0, "root": ""},
        "resources": {
            "memory_mb": [], "gflops": [], "upload_mbps": [], "download_mbps": [],
            "round_seconds": 0.0,
        },
        "engine": {"grid": "ray", "workers": 2, "gpus_per_worker": 0.0, "threads": 0},
        "evaluation": {
            "rounds": 1, "clients": True, "own_adapters": False, "max_records": 0,
        },
        "tracking": {"mlflow": True},
    }  # fmt: skip
    assert configuration.train == TrainingParameters()
    assert configuration.train.epochs == 1 and configuration.train.batch_size == 16
    assert configuration.train.learning_rate == 1e-3 and configuration.train.max_length == 128
    assert configuration.data.test is None


def test_every_key_is_read(tmp_path: Path) -> None:
    configuration = read(tmp_path, WHOLE)
    assert configuration.model.task == "sequence-classification"
    assert configuration.data.partition == "dirichlet:0.5"
    assert configuration.lora.target_modules == ("query", "value")
    assert configuration.lora.ranks == (4, 8)
    assert configuration.train == TrainingParameters(
        epochs=2, batch_size=8, learning_rate=1e-4, max_length=64, schedule="linear", warmup=0.1,
        weight_decay=0.01, max_gradient_norm=0.0, max_steps=9, keep_optimizer=True,
        learning_rate_rank=4, head_learning_rate=0.05,
    )  # fmt: skip
    assert configuration.privacy == PrivacyParameters(
        unit="example", epsilon=4.0, delta=1e-6, max_grad_norm=0.5, noise_multiplier=1.0
    )
    least = read(tmp_path, LEAST).as_mapping()
    whole = configuration.as_mapping()
    assert {(t, k) for t in whole for k in whole[t]} == {(t, k) for t in least for k in least[t]}
    same = {(t, k) for t in whole for k in whole[t] if whole[t][k] == least[t][k]}
    assert same == {("data", "train"), ("federation", "method")}
    assert isinstance(configuration.lora.alpha_over_rank, float)
    assert isinstance(configuration.engine.gpus_per_worker, float)


def test_ranks_may_be_planned_from_resources(tmp_path: Path) -> None:
    configuration = read(
        tmp_path, LEAST, "lora.ranks=auto", "resources.memory_mb=[100, 300]", "resources.gflops=[7]"
    )
    assert configuration.lora.ranks == AUTO
    first, second, third = (configuration.resources.of(turn) for turn in range(3))
    assert (first.memory_mb, second.memory_mb, third.memory_mb) == (100.0, 300.0, 100.0)
    assert second.gflops == 7.0 and second.upload_mbps == math.inf
    assert second.memory_bytes == 3e8 and second.timed


@pytest.mark.parametrize("text", [LEAST, WHOLE])
def test_a_configuration_survives_its_plain_mapping(tmp_path: Path, text: str) -> None:
    configuration = read(tmp_path, text)
    plain = json.loads(json.dumps(configuration.as_mapping()))
    again = configuration_from_mapping(plain, folder=tmp_path)
    assert again == configuration
    assert again.digest == configuration.digest


def test_digests_tell_configurations_apart_but_not_their_places(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text("{}")
    digest = read(tmp_path, LEAST).digest
    assert digest == read(tmp_path / "other", LEAST).digest
    assert digest == read(tmp_path, LEAST + "[federation]\nfraction = 1\n").digest
    assert digest != read(tmp_path, LEAST, "federation.seed=1").digest


def test_overrides_are_toml_or_bare_strings(tmp_path: Path) -> None:
    configuration = read(
        tmp_path,
        LEAST,
        "train.epochs=2",
        "lora.ranks = [4, 64]",
        "data.test=held out = 1.jsonl",
        'model.base="quoted"',
        "engine.grid=inprocess",
        "evaluation.clients=false",
        "train.epochs=3",
        'data.text="a"\nb = 1',
    )
    assert configuration.train.epochs == 3
    assert configuration.lora.ranks == (4, 64)
    assert configuration.data.test == "held out = 1.jsonl"
    assert configuration.model.base == "quoted"
    assert configuration.engine.grid == "inprocess"
    assert configuration.evaluation.clients is False
    assert configuration.data.text == '"a"\nb = 1'


@pytest.mark.parametrize("override", ["train.epochs", "epochs=2", ".epochs=2", "train.=2", "=", ""])
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    assert refusal(tmp_path, LEAST, override).startswith(
        f"--set: {override}; write table.key=value"
    )


def test_paths_are_looked_for_beside_the_file_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, name in ((beside, "train.jsonl"), (here, "train.jsonl"), (here, "test.jsonl")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    monkeypatch.chdir(here)
    configuration = read(beside, LEAST, "data.test=test.jsonl")
    assert configuration.data.train == str(beside / "train.jsonl")
    assert configuration.data.test == str(here / "test.jsonl")
    assert configuration.model.base == "some/base"
    assert configuration.as_mapping()["data"]["train"] == "train.jsonl"
    (here / "some" / "base").mkdir(parents=True)
    again = read(beside, LEAST, "data.test=test.jsonl")
    assert again.model.base == str(here / "some" / "base")
    assert again.as_mapping() == configuration.as_mapping()
    assert again.digest == configuration.digest
    absolute = read(beside, LEAST, f"data.train={here / 'test.jsonl'}")
    assert absolute.data.train == str(here / "test.jsonl")


def test_root_records_are_looked_for_like_all_records(tmp_path: Path) -> None:
    (tmp_path / "root.jsonl").write_text("{}")
    configuration = read(tmp_path, LEAST, "robust.rule=fltrust", "robust.root=root.jsonl")
    assert configuration.robust.root == str(tmp_path / "root.jsonl")
    assert configuration.as_mapping()["robust"]["root"] == "root.jsonl"
    assert read(tmp_path, LEAST).robust.root == ""


def test_the_rules_are_those_of_the_catalogue() -> None:
    from intarsia_aggregators.robust.catalog import CATALOG

    assert tuple(entry.name for entry in CATALOG) == ROBUST_RULES[1:]
    assert ROBUST_RULES[0] == "none"


def test_what_is_nowhere_stays_as_typed_for_whoever_opens_it(tmp_path: Path) -> None:
    configuration = read(tmp_path, LEAST)
    assert configuration.data.train == "train.jsonl"
    assert configuration.model.base == "some/base"


REFUSED = [
    ("[train]\nepoch = 2", "train.epoch: 2; there is no such key, the nearest is train.epochs"),
    ("[trian]\nepochs = 2", 'trian: {"epochs": 2}; there is no such key, the nearest is train'),
    ("[engine]\nepochs = 2", "engine.epochs: 2; there is no such key, the nearest is train.epochs"),
    ("[evaluation]\nround = 2",
     "evaluation.round: 2; there is no such key, the nearest is evaluation.rounds"),
    ("[data.deep]\nx = 1", 'data.deep: {"x": 1}; there is no such key'),
    ("[train]\nepochs = 1.0", "train.epochs: 1.0; write a whole number"),
    ("[train]\nepochs = true", "train.epochs: true; write a whole number"),
    ('[train]\nepochs = "2"', 'train.epochs: "2"; write a whole number'),
    ("[train]\nlearning_rate = nan", "train.learning_rate: NaN; write a finite number"),
    ("[train]\nlearning_rate = inf", "train.learning_rate: Infinity; write a finite number"),
    ("[evaluation]\nclients = 1", "evaluation.clients: 1; write true or false"),
    ("[lora]\nranks = 8", "lora.ranks: 8; write a list of whole numbers"),
    ('[lora]\nranks = [8, "x"]', 'lora.ranks: [8, "x"]; write a list of whole numbers'),
    ("[lora]\ntarget_modules = 3",
     "lora.target_modules: 3; write a string in quotes or a list of strings"),
    ("[tracking]\nmlflow = 1979-05-27", 'tracking.mlflow: "1979-05-27"; write true or false'),
    ("[lora]\nranks = []", "lora.ranks: []; list at least one rank, each 1 or more"),
    ('[lora]\nranks = "all"', 'lora.ranks: "all"; write "auto" or a list of ranks'),
    ('[lora]\nranks = "auto"', 'lora.ranks: "auto"; declare what clients have in the table [reso'),
    ("[lora]\nreplan_rounds = -1", "lora.replan_rounds: -1; set it to 0 or more"),
    ("[resources]\nmemory_mb = 100", "resources.memory_mb: 100; write a list of finite numbers"),
    ("[resources]\ngflops = [1, 0]", "resources.gflops: [1, 0]; set each above 0"),
    ('[resources]\nupload_mbps = ["fast"]',
     'resources.upload_mbps: ["fast"]; write a list of finite numbers'),
    ("[resources]\nround_seconds = -1", "resources.round_seconds: -1; set it to 0 or more"),
    ("[lora]\nranks = [4, 0]", "lora.ranks: [4, 0]; list at least one rank, each 1 or more"),
    ("[lora]\ntarget_modules = []", "lora.target_modules: []; fill it"),
    ('[lora]\ntarget_modules = ["q", ""]', 'lora.target_modules: ["q", ""]; fill it'),
    ("[lora]\nalpha_over_rank = 0", "lora.alpha_over_rank: 0; set it above 0"),
    ("[federation]\nclients = 0", "federation.clients: 0; set it to 1 or more"),
    ("[federation]\nrounds = 0", "federation.rounds: 0; set it to 1 or more"),
    ("[federation]\nfraction = 0", "federation.fraction: 0; set it above 0 and at most 1"),
    ("[federation]\nfraction = 1.5", "federation.fraction: 1.5; set it above 0 and at most 1"),
    ("[federation]\nseed = -1", "federation.seed: -1; set it between 0 and "),
    ("[federation]\ndeadline_seconds = 0", "federation.deadline_seconds: 0; set it above 0"),
    ("[federation]\nminimum_accepted = 9",
     "federation.minimum_accepted: 9; set it to at most federation.clients, 8"),
    ('[federation]\nstart = "warm"',
     'federation.start: "warm"; choose "" or "residual" or "prefix" or "fresh" or "sampled"'),
    ("[federation]\nbroadcast_rank = -1", "federation.broadcast_rank: -1; set it to 0 or more"),
    ("[federation]\nresidual_rank = -1", "federation.residual_rank: -1; set it to 0 or more"),
    ("[federation]\nresidual_rank = 2.5", "federation.residual_rank: 2.5; write a whole number"),
    ('[federation]\nupload = "int4"',
     'federation.upload: "int4"; choose "float32" or "bfloat16" or "int8"'),
    ('[federation]\ndownload = ""',
     'federation.download: ""; choose "float32" or "bfloat16" or "int8"'),
    ("[federation]\nmax_examples = -1", "federation.max_examples: -1; set it to 0 or more"),
    ("[train]\nlearning_rate_rank = -1", "train.learning_rate_rank: -1; set it to 0 or more"),
    ("[train]\nhead_learning_rate = -1", "train.head_learning_rate: -1; set it to 0 or more"),
    ("[train]\nhead_learning_rate = 0.1",
     "train.head_learning_rate: 0.1; leave it out: a causal-lm has no head of its own"),
    ("[train]\nkeep_optimizer = 1", "train.keep_optimizer: 1; write true or false"),
    ('[robust]\nrule = "krum"', 'robust.rule: "krum"; choose "none" or "norm-bound" or '),
    ("[robust]\nmax_norm = -1", "robust.max_norm: -1; set it to 0 or more"),
    ("[robust]\nmax_norm = nan", "robust.max_norm: NaN; write a finite number"),
    ("[robust]\nbyzantine = -1", "robust.byzantine: -1; set it to 0 or more"),
    ("[robust]\nroot = 3", "robust.root: 3; write a string in quotes"),
    ('[robust]\nrule = "fltrust"',
     'robust.root: ""; name records of the server\'s own for fltrust'),
    ("[train]\nepochs = 0", "train.epochs: 0; set it to 1 or more"),
    ("[train]\nbatch_size = 0", "train.batch_size: 0; set it to 1 or more"),
    ("[train]\nlearning_rate = 0", "train.learning_rate: 0; set it above 0"),
    ("[train]\nmax_length = 1", "train.max_length: 1; set it to 2 or more"),
    ('[train]\nschedule = "step"',
     'train.schedule: "step"; choose "constant" or "linear" or "cosine"'),
    ("[train]\nwarmup = 1.1", "train.warmup: 1.1; set it between 0 and 1"),
    ("[train]\nweight_decay = -1", "train.weight_decay: -1; set it to 0 or more"),
    ("[train]\nmax_gradient_norm = -1", "train.max_gradient_norm: -1; set it to 0 or more"),
    ("[train]\nmax_steps = -1", "train.max_steps: -1; set it to 0 or more"),
    ('[privacy]\nunit = "client"', 'privacy.unit: "client"; choose "none" or "example"'),
    ("[privacy]\nepsilon = 0", "privacy.epsilon: 0; set it above 0"),
    ("[privacy]\ndelta = 0", "privacy.delta: 0; set it above 0 and below 1"),
    ("[privacy]\ndelta = 1", "privacy.delta: 1; set it above 0 and below 1"),
    ("[privacy]\nmax_grad_norm = 0", "privacy.max_grad_norm: 0; set it above 0"),
    ("[privacy]\nnoise_multiplier = -1", "privacy.noise_multiplier: -1; set it to 0 or more"),
    ('[engine]\ngrid = "spark"', 'engine.grid: "spark"; choose "ray" or "inprocess"'),
    ("[engine]\nworkers = 0", "engine.workers: 0; set it to 1 or more"),
    ("[engine]\ngpus_per_worker = -1", "engine.gpus_per_worker: -1; set it to 0 or more"),
    ("[engine]\nthreads = -1", "engine.threads: -1; set it to 0 or more"),
    ("[evaluation]\nrounds = 0", "evaluation.rounds: 0; set it to 1 or more"),
    ("[evaluation]\nmax_records = -1", "evaluation.max_records: -1; set it to 0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("tables", "expected"), REFUSED, ids=[case[0] for case in REFUSED])
def test_each_bad_value_is_refused_by_name(tmp_path: Path, tables: str, expected: str) -> None:
    assert refusal(tmp_path, f"{LEAST}{tables}\n").startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.task=translation", 'choose "causal-lm" or "sequence-classification"'),
        ("model.base=", 'model.base: ""; fill it'),
        ("data.partition=dirichlet:0", 'choose "natural", "iid" or "dirichlet:ALPHA"'),
        ("data.text=3", "data.text: 3; write a string in quotes"),
    ],
)
def test_bad_models_and_data_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    line = refusal(tmp_path, LEAST, override)
    assert line.startswith(override.partition("=")[0])
    assert expected in line


@pytest.mark.parametrize(
    ("missing", "line"),
    [("model.base", 'base = "some/base"'), ("model.task", 'task = "causal-lm"'),
     ("data.train", 'train = "train.jsonl"')],
)  # fmt: skip
def test_the_three_needed_keys_are_asked_for(tmp_path: Path, missing: str, line: str) -> None:
    table = missing.partition(".")[0]
    expected = f"{missing}: missing; set it in the table [{table}]"
    assert refusal(tmp_path, LEAST.replace(line, "")) == expected


def test_all_errors_are_found_together(tmp_path: Path) -> None:
    line = refusal(tmp_path, "[train]\nepochs = 0\nepoch = 1\n[lora]\nranks = []\n")
    assert line.startswith("train.epoch: 1; ")
    assert line.endswith("(5 more errors in this configuration)")


def test_a_key_that_should_be_a_table_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"train = 3\n{LEAST}") == "train: 3; write a table [train]"
    line = refusal(tmp_path, f"epochs = 3\n{LEAST}")
    assert line == "epochs: 3; there is no such key, the nearest is train.epochs"


def test_unknown_methods_are_refused_where_the_known_are_told(tmp_path: Path) -> None:
    override = "federation.method=average"
    assert read(tmp_path, LEAST, override).federation.method == "average"
    line = refusal(tmp_path, LEAST, override, methods=("ledger", "fedit"))
    assert line == 'federation.method: "average"; choose "fedit" or "ledger"'


def test_malformed_toml_names_the_line(tmp_path: Path) -> None:
    line = refusal(tmp_path, f"{LEAST}[train\n")
    assert line.startswith(f"configuration: {tmp_path / 'config.toml'}: ")
    assert "line 6" in line
    assert "configuration: " in refusal(tmp_path, "a = " + "[" * 100_000)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml \(No such file"):
        read_configuration(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="Is a directory"):
        read_configuration(tmp_path)
    (tmp_path / "latin.toml").write_bytes(LEAST.encode() + b"# \xe4\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_configuration(tmp_path / "latin.toml")
