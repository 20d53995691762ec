"""The study's groups, read from the shared data; which texts are trained on is drawn at random."""

from __future__ import annotations

import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.records import Record
from intarsia_platform.audits.views import Exam

ENCODINGS = {"finnish": "latin-1", "french": "latin-1", "german": "latin-1", "swedish": "cp865"}
LANGUAGES = ("english-kjv", "french", "german", "portuguese", "lolcat")
SPEAKERS = ("GLOUCESTER", "DUKE VINCENTIO", "MENENIUS")
BASE = Path("stories260k") / "hf"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a study is.

    Args:
        languages: How many versions of Genesis are groups.
        speakers: How many of Shakespeare's speakers are.
        texts: Texts of each group to train on, and as many left out.
        words: Words of a text.
        rank: Rank of each adapter.
        epochs: Passes over a group's texts.
        prompts: Prompts that are answered.
    """

    languages: int
    speakers: int
    texts: int
    words: int
    rank: int
    epochs: int
    prompts: int


FULL = Size(languages=5, speakers=3, texts=60, words=30, rank=8, epochs=12, prompts=8)
REDUCED = Size(languages=2, speakers=2, texts=24, words=20, rank=8, epochs=12, prompts=2)


def read_exams(shared: Path, size: Size, seed: int = 0) -> tuple[Exam, ...]:
    """Read the groups.

    Each group's texts are drawn by themselves, so that a passage's being trained on in one
    language says nothing of the same passage in another.

    Args:
        shared: The folder of shared data.
        size: How large.
        seed: Of the draw.

    Returns:
        One exam a group; equal arguments give equal texts.

    Raises:
        InputError: If the data are not there.
    """
    try:
        texts = {**_genesis(shared, size), **_speakers(shared, size)}
    except OSError as error:
        raise InputError("shared data", error, "name the data's folder with --shared") from None
    return tuple(_drawn(name, found, size.texts, seed) for name, found in texts.items())


def prompts_of(exams: tuple[Exam, ...], count: int) -> list[str]:
    """Beginnings of texts that were trained on, of all groups in turn."""
    drawn = [exams[n % len(exams)].members[n // len(exams)].text for n in range(count)]
    return [" ".join(text.split()[:6]) for text in drawn]


def passages(text: str, words: int) -> list[str]:
    """Consecutive passages of a text; a shorter rest is left out, and no passage comes twice."""
    split = text.split()
    ends = range(words, len(split) + 1, words)
    return list(dict.fromkeys(" ".join(split[end - words : end]) for end in ends))


def _drawn(name: str, texts: list[str], count: int, seed: int) -> Exam:
    if len(texts) < 2 * count:
        raise InputError(f"texts of {name}", len(texts), f"draw at most {len(texts) // 2}")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen = [Record(text=texts[place]) for place in generator.permutation(len(texts))]
    return Exam(group=name, members=chosen[:count], others=chosen[count : 2 * count])


def _genesis(shared: Path, size: Size) -> dict[str, list[str]]:
    """One book in several languages and versions."""
    found = {}
    with zipfile.ZipFile(shared / "genesis" / "genesis.zip") as archive:
        paths = {Path(path).stem: path for path in archive.namelist() if path.endswith(".txt")}
        for name in LANGUAGES[: size.languages]:
            text = archive.read(paths[name]).decode(ENCODINGS.get(name, "utf-8"))
            found[name] = passages(text, size.words)
    return found


def _speakers(shared: Path, size: Size) -> dict[str, list[str]]:
    """What some of Shakespeare's people say."""
    said = defaultdict(list)
    for block in (shared / "tinyshakespeare" / "input.txt").read_text().split("\n\n"):
        name, _, words = block.strip().partition(":\n")
        if words:
            said[name].append(words)
    return {
        name.lower().replace(" ", "-"): passages(" ".join(said[name]), size.words)
        for name in SPEAKERS[: size.speakers]
    }
