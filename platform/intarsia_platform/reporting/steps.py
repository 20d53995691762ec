"""What to type next, the same in the report and on the terminal."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from intarsia_platform.results import SimulationResult
from intarsia_platform.tracking import tracking_uri


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """One thing to do next.

    Args:
        purpose: What it is for, as a short sentence.
        command: What to type.
    """

    purpose: str
    command: str


def next_steps(
    result: SimulationResult, *, home: Path | None = None, mlflow_database: Path | None = None
) -> tuple[NextStep, ...]:
    """What a person can do with a finished simulation.

    Args:
        result: The simulation.
        home: Its home; None leaves the option out.
        mlflow_database: MLflow's database, where the run was tracked.

    Returns:
        Commands that can be typed as they stand.
    """
    option = "" if home is None else f" --home {shlex.quote(str(home))}"
    digest = shlex.quote(result.adapter.digest)
    steps = [
        NextStep(purpose="See the adapter", command=f"intarsia adapters show {digest}{option}"),
        NextStep(
            purpose="See what it was made of",
            command=f"intarsia adapters lineage {digest}{option}",
        ),
        NextStep(
            purpose="Take it out as a PEFT folder",
            command=f"intarsia adapters export {digest} --out my-adapter{option}",
        ),
    ]
    if mlflow_database is not None:
        address = shlex.quote(tracking_uri(mlflow_database))
        steps.append(
            NextStep(
                purpose="Compare runs in MLflow",
                command=f"mlflow ui --backend-store-uri {address}",
            )
        )
    return tuple(steps)


def on_lines(command: str, longest: int = 88) -> str:
    """Break a long command before its options, so that it can still be pasted whole.

    Args:
        command: What to type.
        longest: Commands up to so many characters stay as they are.

    Returns:
        The command, with backslashes at the ends of its lines where it was broken.
    """
    if len(command) <= longest or "'" in command or '"' in command:
        return command
    return re.sub(r" (?=--[a-z])", " \\\\\n  ", command)


def loading_code(result: SimulationResult) -> str:
    """Python that loads the adapter with PEFT alone.

    Args:
        result: The simulation.

    Returns:
        A few lines to paste.
    """
    model = result.configuration.get("model", {})
    classes = {"sequence-classification": "AutoModelForSequenceClassification"}
    name = classes.get(model.get("task"), "AutoModelForCausalLM")
    base = json.dumps(str(model.get("base", "path/or/hub-id")), ensure_ascii=False)
    path = json.dumps(result.adapter.path, ensure_ascii=False)
    return (
        "from peft import PeftModel\n"
        f"from transformers import {name}\n\n"
        f"base = {name}.from_pretrained({base})\n"
        f"model = PeftModel.from_pretrained(base, {path})"
    )
