"""The study's groups of texts, read from the shared data."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from intarsia_client.errors import InputError

PASSAGE_WORDS = 50
PROMPT_WORDS = 15
HELD_OUT_SHARE = 0.3
ENCODINGS = {"finnish": "latin-1", "french": "latin-1", "german": "latin-1", "swedish": "cp865"}
NAMES = ("clinc150", "genesis", "state_union")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of texts, each of which would have an adapter.

    Args:
        name: What they come from.
        documents: From each group's name to the texts that its adapter is trained on.
        queries: From each group's name to texts that it is not trained on.
        prompts: The same cut to 15 words, where the texts are longer.
        strangers: Texts of no group.
    """

    name: str
    documents: Mapping[str, Sequence[str]]
    queries: Mapping[str, Sequence[str]]
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    strangers: Sequence[str] = ()


def read_groups(name: str, shared: Path, documents: int, queries: int) -> Groups:
    """Read the groups of one data set.

    Args:
        name: One of :data:`NAMES`.
        shared: The folder of shared data.
        documents: How many texts a group has to train on, at most.
        queries: How many texts of each group are asked with, at most.

    Returns:
        The groups; equal arguments give equal texts.

    Raises:
        InputError: If the data are not there.
    """
    readers = {"clinc150": _clinc150, "genesis": _genesis, "state_union": _state_union}
    try:
        return readers[name](shared / name, documents, queries)
    except OSError as error:
        raise InputError(f"data of {name}", error, "name the data's folder with --shared") from None


def passages(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Consecutive passages of a text; a shorter rest is left out."""
    split = text.split()
    ends = range(words, len(split) + 1, words)
    return [" ".join(split[end - words : end]) for end in ends]


def spread(texts: Sequence[str], count: int) -> list[str]:
    """At most so many texts, evenly over all of them."""
    places = np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(int)
    return [texts[place] for place in places]


def cut(queries: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The first words of each query."""
    return {
        name: [" ".join(text.split()[:PROMPT_WORDS]) for text in texts]
        for name, texts in queries.items()
    }


def _clinc150(folder: Path, documents: int, queries: int) -> Groups:
    """Ten domains of utterances; the out-of-scope ones belong to none."""
    domain_of = {
        intent: domain
        for domain, intents in json.loads((folder / "domains.json").read_text()).items()
        for intent in intents
    }
    parts = json.loads((folder / "data_full.json").read_text())
    texts: dict[str, dict[str, list[str]]] = {}
    for part in ("train", "test"):
        texts[part] = defaultdict(list)
        for text, intent in parts[part]:
            texts[part][domain_of[intent]].append(text)
    return Groups(
        name="clinc150",
        documents={name: spread(found, documents) for name, found in texts["train"].items()},
        queries={name: spread(texts["test"][name], queries) for name in texts["train"]},
        strangers=spread([text for text, _ in parts["oos_test"]], 5 * queries),
    )


def _genesis(folder: Path, documents: int, queries: int) -> Groups:
    """One book in six languages, two of them in more versions; the last part is asked with."""
    kept: dict[str, list[str]] = {}
    asked: dict[str, list[str]] = {}
    with zipfile.ZipFile(folder / "genesis.zip") as archive:
        for path in sorted(archive.namelist()):
            if not path.endswith(".txt"):
                continue
            name = Path(path).stem
            found = passages(archive.read(path).decode(ENCODINGS.get(name, "utf-8")))
            begin = round(len(found) * (1 - HELD_OUT_SHARE))
            kept[name] = spread(found[:begin], documents)
            asked[name] = spread(found[begin:], queries)
    return Groups(name="genesis", documents=kept, queries=asked, prompts=cut(asked))


def _state_union(folder: Path, documents: int, queries: int) -> Groups:
    """Speeches by president; the last one of each is asked with."""
    speeches: defaultdict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(folder / "state_union.zip") as archive:
        for path in sorted(archive.namelist()):
            if path.endswith(".txt"):
                president = Path(path).stem.split("-")[1]
                speeches[president].append(archive.read(path).decode("latin-1"))
    kept, asked = {}, {}
    for president, (*earlier, last) in sorted(speeches.items()):
        found = [passage for speech in earlier for passage in passages(speech)]
        kept[president] = spread(found, documents)
        asked[president] = spread(passages(last), queries)
    return Groups(name="state_union", documents=kept, queries=asked, prompts=cut(asked))
