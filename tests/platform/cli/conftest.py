"""The command line in this process, and adapters that PEFT itself saved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from intarsia_platform.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line on standard error."""
        (line,) = self.err.splitlines()
        return line


@pytest.fixture(autouse=True)
def _as_a_person_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("INTARSIA_HOME", "INTARSIA_DATABASE_URL", "INTARSIA_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def intarsia(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command line in this process."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts a command line as a process of its own, ended by whoever started it."""
    program = "import sys; from intarsia_platform.cli.main import main; sys.exit(main())"

    def begin(*words: str, folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return begin


@pytest.fixture(scope="session")
def saved_by_peft(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random Llama under ``"base"``, and adapters of it by name, saved by PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("peft")
    torch.manual_seed(0)
    configuration = LlamaConfig(
        vocab_size=48,
        hidden_size=80,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(configuration).save_pretrained(folder / "base")
    kinds = {
        "four": {"r": 4, "lora_alpha": 8},
        "sixteen": {"r": 16, "lora_alpha": 5, "use_rslora": True},
        "mixed": {
            "r": 32,
            "lora_alpha": 64,
            "rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2},
            "alpha_pattern": {"q_proj": 3},
        },
        "sixty-four": {"r": 64, "lora_alpha": 16},
    }
    for name, options in kinds.items():
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(
            base,
            LoraConfig(
                task_type="CAUSAL_LM",
                target_modules="all-linear",
                init_lora_weights=False,
                **options,
            ),
        )
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ("base", *kinds)}
