"""What the study runs: its data sets, its parts and its cells."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_platform.groups.describing import settled_encoder
from intarsia_platform.groups.rows import GroupSettings

FORMAT = 2
"""Raised where a change to the driver makes finished cells worthless."""

ACCESS, RETRIEVAL, CONTINUAL, DELETION = PARTS = ("access", "retrieval", "continual", "deletion")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set and what of it is used.

    Args:
        name: ``"genesis"``, ``"state_union"``, ``"tinyshakespeare"`` or ``"clinc150"``.
        task: ``"sequence-classification"`` or ``"causal-lm"``.
        groups: How many groups, at most; 0 for all.
        documents: Records of each group to train on.
        queries: Held-out records of each group.
        max_length: Longest sequence, in tokens.
        epochs: Passes over a group's records.
        batch_size: Sequences in an optimiser step.
        learning_rate: AdamW's peak rate; 0 for the platform's rule.
        rank: Of every adapter.
        removed: Share of one group's records that is deleted.
        intents: Classes of each group, for classification.
        shortest_text: Shorter texts are left out, in characters; only for Shakespeare's turns.
        longest_text: Longer ones likewise.
        target_modules: Ends of the names of what is adapted; empty for every linear module.
    """

    name: str
    task: str
    groups: int
    documents: int
    queries: int
    max_length: int
    epochs: int
    batch_size: int
    learning_rate: float
    rank: int
    removed: float
    intents: int = 0
    shortest_text: int = 0
    longest_text: int = 0
    target_modules: tuple[str, ...] = ()

    @property
    def measure(self) -> str:
        """What the tables show."""
        return "accuracy" if self.task == "sequence-classification" else "perplexity"

    def settings(self, seed: int) -> GroupSettings:
        """How a group's adapter is trained, as ``intarsia groups add`` would be told."""
        return GroupSettings(
            rank=self.rank,
            target_modules=self.target_modules,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            max_length=self.max_length,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work, with all that decides its result.

    Args:
        dataset: The data.
        part: One of :data:`PARTS`.
        seed: Decides which records are drawn, the classifier's head, the adapters' starts, the
            order of records, the order of the groups, and what is deleted.
        encoder: What reads texts for retrieval, ``"minilm"`` or ``"base"``.
    """

    dataset: Dataset
    part: str
    seed: int
    encoder: str

    @property
    def key(self) -> str:
        """Names the cell: a digest of everything that decides its result."""
        settings = {**asdict(self), "format": FORMAT}
        return bytes_digest(canonical_json(settings)).removeprefix("sha256:")[:20]

    @property
    def title(self) -> str:
        """One line for the progress."""
        return f"{self.dataset.name}, {self.part}, seed {self.seed}"

    @property
    def cost_class(self) -> tuple[str, str]:
        """Cells of one class take about as long."""
        return self.dataset.name, self.part

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Cell:
        """The cell that ``dataclasses.asdict`` made this of, perhaps by way of JSON."""
        return cls(**{**settings, "dataset": _dataset(**settings["dataset"])})


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole study, or its reduced form.

    Args:
        datasets: The data sets.
        parts: Some of :data:`PARTS`.
        seeds: The seeds.
        encoder: As in :class:`Cell`.
    """

    datasets: tuple[Dataset, ...]
    parts: tuple[str, ...]
    seeds: tuple[int, ...]
    encoder: str

    def cell(self, dataset: Dataset, part: str, seed: int) -> Cell:
        """One cell."""
        return Cell(dataset=dataset, part=part, seed=seed, encoder=self.encoder)

    def cells(self) -> list[Cell]:
        """All cells, seed by seed: what is finished is then of few seeds in all parts.

        Within a seed a part at a time, since the later parts find what ``access`` trained.
        """
        return [
            self.cell(dataset, part, seed)
            for seed in self.seeds
            for part in self.parts
            for dataset in self.datasets
        ]


def read_study(path: Path, *, reduced: bool) -> Study:
    """Read the study's configuration.

    Args:
        path: The TOML file.
        reduced: Whether to read its reduced form.

    Returns:
        The study.

    Raises:
        InputError: If a part is unknown.
    """
    told = tomllib.loads(path.read_text())
    changed = told.pop("reduced") if reduced else {}
    tables = changed.get("datasets", {})
    for part in told["parts"]:
        if part not in PARTS:
            raise InputError("part", part, f"choose among {', '.join(PARTS)}")
    return Study(
        datasets=tuple(
            _dataset(name=name, **{**table, **tables.get(name, {})})
            for name, table in told["datasets"].items()
        ),
        parts=tuple(told["parts"]),
        seeds=tuple(changed.get("seeds", told["seeds"])),
        encoder=settled_encoder(replace(GroupSettings(), encoder=told["encoder"])).encoder,
    )


def _dataset(**table: Any) -> Dataset:
    lists = {key: tuple(one) for key, one in table.items() if isinstance(one, list)}
    return Dataset(**{**table, **lists})
