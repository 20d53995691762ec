"""Writes the model card of the demonstration's base model."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
license: other
license_name: PSF-2.0
---

# Intarsia's embedded base model

A {millions:.2f} million parameter Llama, small enough to live in the repository, so that
the demonstration and the tests run without a network. It is the frozen base on which the
demonstration's departments train their adapters.

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters:,} (float32, tied embeddings) |
| tokenizer | byte-level BPE, {vocabulary} tokens, trained on the same text |
| training text | {characters:,} characters, {tokens:,} tokens; seen {epochs:.1f} times |
| held out | {held_out:.0%} of the files, chosen by hash of seed {seed} and path |
| train loss | {train_loss:.3f} nats per token (with dropout, over the last {window} steps) |
| held-out loss | {validation_loss:.3f} nats per token, perplexity {perplexity:.1f} (step {step}) |
| training time | {minutes:.0f} minutes, {speed:,.0f} tokens a second, {threads} thread(s) |
| made with | Python {python}, torch {torch}, transformers {transformers} |

## Text and licence

Docstrings, comment blocks and the pydoc help topics of the standard library of Python {python},
read as text and never run, and nothing else: none of the libraries that play departments in
the demonstration has a word in it. Comment blocks with a copyright notice are left out.
The text is part of Python, under the Python Software Foundation License Version 2:

{copyright}

## Making it again

```
{command}
```

Settings: {settings}.

The weights with the lowest held-out loss are the ones kept; `training_log.jsonl` has every
evaluation. Another version of Python has another standard library, and gives another model.

## Use and limits

For showing and testing federated training, composition and unlearning, where what counts is
the difference an adapter makes. It continues English documentation in the manner of Python's;
it knows no facts to rely on, follows no instructions, reads no other language, and what it
writes should not be taken for documentation.
"""


def write_model_card(
    path: Path,
    *,
    settings: Mapping[str, int | float],
    log: Sequence[Mapping[str, int | float]],
    parameters: int,
    characters: int,
    tokens: int,
    command: str,
) -> None:
    """Writes the card.

    Args:
        path: The file to write.
        settings: The training's settings by name.
        log: The training's log, one mapping an evaluation; at least one.
        parameters: Parameters of the model.
        characters: Length of the training text.
        tokens: Length of the training text in tokens.
        command: What makes the model again.

    Raises:
        ValueError: If the log is empty.
    """
    if not log:
        raise ValueError("the training log is empty; evaluate at least once.")
    best = min(log, key=lambda line: line["validation_loss"])
    last = log[-1]
    card = _CARD.format(
        millions=parameters / 1e6,
        architecture=(
            f"Llama, {settings['layers']} layers, width {settings['hidden_size']}, "
            f"{settings['heads']} heads, feed-forward {settings['intermediate_size']}, "
            f"{settings['positions']} positions"
        ),
        parameters=parameters,
        vocabulary=settings["vocabulary"],
        characters=characters,
        tokens=tokens,
        epochs=last["tokens"] / tokens,
        held_out=settings["test_share"],
        seed=settings["seed"],
        train_loss=best["train_loss"],
        window=settings["evaluate_every"],
        validation_loss=best["validation_loss"],
        perplexity=math.exp(best["validation_loss"]),
        step=best["step"],
        minutes=last["seconds"] / 60,
        speed=last["tokens"] / max(last["seconds"], 1e-9),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
        copyright="\n".join(f"> {line}".rstrip() for line in sys.copyright.splitlines()),
        command=command,
        settings=", ".join(f"{name} {value}" for name, value in settings.items()),
    )
    path.write_text(card, encoding="utf-8")
