"""A home with two departments, and servers of it: in a thread, and as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LEGAL = "the contract binds both parties until either gives notice in writing"
MEDICAL = "the patient takes two tablets with water and rests for one whole day"
POLICIES = """
@id("legal readers")
permit(principal, action == Action::"use", resource)
when { principal.groups.contains("lawyers") && resource.labels.contains("legal") };
@id("medical readers")
permit(principal, action == Action::"use", resource)
when { principal.groups.contains("doctors") && resource.labels.contains("medical") };
@id("audits only")
permit(principal == User::"cleo", action == Action::"use", resource)
when { context.purpose == "audit" };
"""
GROUPS = {
    "ana": ["lawyers"],
    "ben": ["doctors"],
    "cleo": ["steward"],
    "dora": ["lawyers", "doctors"],
    "eve": [],
}
PROGRAM = "import sys; from intarsia_platform.cli.main import main; sys.exit(main())"


@dataclass(frozen=True)
class Departments:
    """A home, and a key of each principal."""

    path: Path
    keys: dict[str, str]

    def copy(self, path: Path) -> Departments:
        """The same home elsewhere, to be changed."""
        shutil.copytree(self.path, path)
        return Departments(path, self.keys)

    def intarsia(self, *words: str) -> subprocess.Popen[str]:
        """A command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--home", str(self.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    departments: Departments
    app: Any = None
    service: Any = None
    server: Any = None
    process: subprocess.Popen[str] | None = None

    def http(self, principal: str, **options: Any) -> httpx.Client:
        """A client with a principal's key."""
        headers = {"Authorization": f"Bearer {self.departments.keys[principal]}"}
        headers |= options.pop("headers", {})
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def openai(self, principal: str, **options: Any) -> Any:
        """The official client with a principal's key."""
        from openai import OpenAI

        return OpenAI(
            base_url=f"{self.url}/v1",
            api_key=self.departments.keys[principal],
            max_retries=0,
            timeout=60,
            **options,
        )


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="session", name="until")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Llama that never ends an answer by itself."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from tokenizers.decoders import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    folder = tmp_path_factory.mktemp("base")
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = ["[PAD]", "[UNK]", "<s>"]
    tokenizer = Tokenizer(models.BPE(unk_token=names[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([LEGAL, MEDICAL], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=2048,
        pad_token=names[0],
        unk_token=names[1],
        bos_token=names[2],
    )
    wrapped.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(wrapped),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                bos_token_id=2,
                eos_token_id=None,
                pad_token_id=0,
            )
        )
        for parameter in model.parameters():
            # Larger than usual, so that outputs differ visibly between inputs.
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def departments(base: str, tmp_path_factory: pytest.TempPathFactory) -> Departments:
    """A home with the groups legal and medical, policies, and a key for each principal."""
    from intarsia_client.records import Record
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.groups.lifecycle import open_groups
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings
    from intarsia_platform.home import Home
    from intarsia_platform.registry.database import open_database

    home = Home.open(tmp_path_factory.mktemp("gateway") / "home")
    quick = GroupSettings(rank=4, epochs=30, learning_rate=0.02, max_length=64, encoder="base")
    with open_groups(home) as lifecycle:
        for name, text in (("legal", LEGAL), ("medical", MEDICAL)):
            records = tuple(Record(text=f"{text} {number}") for number in range(4))
            lifecycle.add(
                NewGroup(name=name, base=base, records=records, labels=[name], settings=quick)
            )
    users = [
        {"uid": {"type": "User", "id": name}, "attrs": {"groups": groups}, "parents": []}
        for name, groups in GROUPS.items()
    ]
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(users))
        keys = ApiKeys(database)
        made = {name: keys.create(name)[1] for name in (*GROUPS, "stranger")}
    return Departments(home.path, made)


@pytest.fixture(scope="session")
def service(departments: Departments) -> Iterator[Any]:
    """The home's service; a process has one of a base."""
    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.home import Home

    home = Home.open(departments.path)
    with open_service(home, settings=ServiceSettings(max_rows=4)) as opened:
        opened.prepare()
        yield opened


@pytest.fixture
def own_service(base: str, departments: Departments, tmp_path: Path) -> Iterator[Any]:
    """A service of a copy of the home, to be broken."""
    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.home import Home

    home = Home.open(departments.copy(tmp_path / "own").path)
    # A process serves a folder's base once.
    place = shutil.copytree(base, tmp_path / "base")
    # Each row by itself: nothing is measured, so that it begins at once.
    settings = ServiceSettings(max_rows=4, alone=True)
    with open_service(home, base=str(place), settings=settings) as opened:
        opened.prepare()
        yield opened


@pytest.fixture(scope="session")
def in_thread(
    departments: Departments, service: Any
) -> Callable[..., AbstractContextManager[Served]]:
    """Serves the home in a thread of this process."""

    @contextmanager
    def serve(
        *, tokens: Any = None, drain: int = 5, own: Any = None, **limits: Any
    ) -> Iterator[Served]:
        from intarsia_platform.access.keys import ApiKeys
        from intarsia_platform.gateway.app import create_app
        from intarsia_platform.gateway.callers import Callers
        from intarsia_platform.gateway.server import GatewayServer, bind, url_of
        from intarsia_platform.gateway.settings import GatewaySettings

        ready = threading.Event()
        with bind("127.0.0.1", 0) as taken:
            answering = own or service
            callers = Callers(ApiKeys(answering.database), tokens)
            app = create_app(answering, callers, GatewaySettings(**{"max_tokens": 2000, **limits}))
            server = GatewayServer(app, ready=ready.set, drain_seconds=drain)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
            thread.start()
            try:
                assert ready.wait(30)
                url = url_of(taken, tls=False)
                yield Served(url, departments, app=app, service=answering, server=server)
            finally:
                server.should_exit = True
                thread.join()

    return serve


@pytest.fixture(scope="session")
def served(in_thread: Callable[..., AbstractContextManager[Served]]) -> Iterator[Served]:
    """The home as it is, served in a thread."""
    with in_thread() as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers as processes; those that still run are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(departments: Departments, *words: str) -> Served:
        found = tmp_path / f"server-{len(started)}.json"
        options = ["--port", "0", "--rows", "4", "--max-tokens", "2000", "--json", str(found)]
        process = departments.intarsia("serve", *options, *words)
        started.append(process)
        until(lambda: found.exists() or process.poll() is not None, 90)
        assert process.poll() is None, process.communicate()
        return Served(json.loads(found.read_text())["url"], departments, process=process)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
