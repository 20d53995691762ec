"""Trains the demonstration's base model: a small Llama on the standard library's documentation.

``python -m intarsia_platform.demo.train_base --out DIR`` leaves a folder that
``transformers`` loads offline: tokenizer, weights, configuration, the log of the training and a
model card. The same settings, Python and torch give the same bytes on the same kind of machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from intarsia_platform.demo.base_model import (
    BaseSettings,
    build_model,
    encode_texts,
    pack_blocks,
    train_tokenizer,
)
from intarsia_platform.demo.base_training import LogLine, train_model
from intarsia_platform.demo.corpus import Record, split_by_source, standard_library_records
from intarsia_platform.demo.model_card import write_model_card


def train_base(
    out: Path,
    *,
    settings: BaseSettings,
    records: Sequence[Record] | None = None,
    report: Callable[[int, LogLine | None], None] = lambda step, line: None,
    command: str = "python -m intarsia_platform.demo.train_base",
) -> list[LogLine]:
    """Trains tokenizer and model and writes every asset.

    Args:
        out: Folder for the assets; files of the same names are replaced, after the training.
        settings: What to train.
        records: The text; the standard library's documentation by default.
        report: Called after every step with the steps done and, after an evaluation, its line.
        command: Goes into the model card.

    Returns:
        The log of the training, one line an evaluation.

    Raises:
        ValueError: If ``out`` is a file, or the text too short for one batch or one held-out
            block.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file; name a folder.")
    every = standard_library_records() if records is None else list(records)
    train, held_out = split_by_source(every, seed=settings.seed, test_share=settings.test_share)
    tokenizer = train_tokenizer(
        (record.text for record in train),
        vocabulary=settings.vocabulary,
        model_max_length=settings.positions,
    )
    documents = encode_texts(tokenizer, [record.text for record in train])
    held_out_documents = encode_texts(tokenizer, [record.text for record in held_out])
    model = build_model(settings, tokenizer)
    log = train_model(
        model, documents, pack_blocks(held_out_documents, settings.block_length), settings, report
    )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write_log(folder / "training_log.jsonl", log)
        write_model_card(
            folder / "README.md",
            settings=vars(settings),
            log=[vars(line) for line in log],
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            characters=sum(len(record.text) for record in train),
            tokens=sum(map(len, documents)),
            command=command,
        )
        _publish(folder, out)
    return log


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the training from the command line.

    Args:
        arguments: Command-line arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 2 bad input.
    """
    default = BaseSettings()
    parser = argparse.ArgumentParser(description="Train the demonstration's base model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the assets")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--dropout", type=float, default=default.dropout)
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = vars(parser.parse_args(arguments))
    out, threads = options.pop("out"), options.pop("threads")
    try:
        settings = BaseSettings(**options)
        torch.set_num_threads(threads)
        # The one shard that is saved needs no progress bar of its own.
        disable_progress_bar()
        changed = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in options.items()
            if value != getattr(default, name) or name in ("seed", "steps")
        ]
        command = " ".join(["python -m intarsia_platform.demo.train_base --out DIR", *changed])
        with _Reporter(settings.steps) as reporter:
            train_base(out, settings=settings, report=reporter, command=command)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _write_log(path: Path, log: Sequence[LogLine]) -> None:
    path.write_text("".join(json.dumps(vars(line)) + "\n" for line in log), encoding="utf-8")


def _publish(folder: Path, out: Path) -> None:
    """Moves every file of a folder to another, replacing files of the same names."""
    for file in sorted(folder.iterdir()):
        # Some writers make files for the owner alone; these are for every user of the package.
        file.chmod(0o644)
        file.replace(out / file.name)


class _Reporter:
    """Shows the training: a bar on a terminal, one line an evaluation elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._console = Console(stderr=True)
        self._begin = time.monotonic()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, losses="")

    def __enter__(self) -> _Reporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, step: int, line: LogLine | None) -> None:
        self._bar.update(self._task, completed=step)
        if line is None:
            return
        losses = f"train {line.train_loss:.3f} held out {line.validation_loss:.3f}"
        self._bar.update(self._task, losses=losses)
        if not self._console.is_terminal:
            left = (time.monotonic() - self._begin) / step * (self._steps - step)
            sys.stderr.write(f"step {step}/{self._steps}  {losses}  {left / 60:.1f} min to go\n")
            sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
