"""The methods by name, and texts described through an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors import catalog
from intarsia_continual.descriptors.catalog import CATALOG, DEFAULT, describe, find_method
from sklearn.feature_extraction.text import HashingVectorizer

WORDS = ("oak", "elm", "ash", "fir", "yew", "box", "plane", "lime", "cedar", "pear")
TEXTS = [f"{one} and {other} in the {n} veneer" for n, one in enumerate(WORDS) for other in WORDS]


class HashedWords:
    """Words hashed into 64 places by scikit-learn: a real encoder of no weights."""

    name = "words"
    digest = bytes_digest(b"words")
    width = 64

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        if not texts:
            return np.zeros((0, self.width), np.float32)
        vectors = HashingVectorizer(n_features=self.width).transform(texts)
        return vectors.toarray().astype(np.float32)


def test_an_entry_says_what_a_person_needs() -> None:
    assert DEFAULT.name == "document-similarity"
    assert len({entry.name for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        assert find_method(entry.name) is entry
        assert entry.summary and entry.keeps
        assert "arXiv:" in entry.source or "doi:" in entry.source


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    names = ", ".join(entry.name for entry in CATALOG)
    with pytest.raises(InputError, match=f"descriptor method: lda; choose one of: {names}"):
        find_method("lda")


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_a_description_follows_from_the_texts_and_the_seed(entry) -> None:
    alone = describe(entry.method, HashedWords(), TEXTS).to_bytes()
    shared = HashedWords()
    describe(entry.method, shared, ["others", "were here before"], seed=5)
    assert describe(entry.method, shared, TEXTS).to_bytes() == alone
    assert describe(entry.method, shared, TEXTS[1:]).to_bytes() != alone
    assert describe(entry.method, shared, TEXTS, seed=1).to_bytes() != alone


def test_short_pieces_of_long_texts_decide_the_threshold() -> None:
    long = [" ".join(f"w{(7 * n + m) % 40}" for m in range(60)) for n in range(20)]
    encoder = HashedWords()
    descriptor = describe(DEFAULT.method, encoder, long)
    pieces = encoder.seen[len(long) :]
    assert len(pieces) == len(long)
    for piece, text in zip(pieces, long, strict=True):
        assert piece in text and len(piece.split()) == catalog.PROBE_WORDS
    whole = DEFAULT.method.fit(
        encoder.encode(long), np.random.default_rng(0), encoder=encoder.digest
    )
    assert descriptor.held_out_score(0.05) < whole.held_out_score(0.05)
    assert len(set(HashedWords().encode(TEXTS).shape)) == 2


def test_short_texts_stand_for_themselves() -> None:
    encoder = HashedWords()
    describe(DEFAULT.method, encoder, TEXTS)
    assert encoder.seen == TEXTS


def test_a_text_that_stands_twice_counts_once() -> None:
    once = describe(DEFAULT.method, HashedWords(), TEXTS)
    twice = describe(DEFAULT.method, HashedWords(), [*TEXTS, *TEXTS])
    assert twice.to_bytes() == once.to_bytes()


def test_of_many_texts_a_part_is_encoded() -> None:
    many = [f"text number{n}" for n in range(catalog.DESCRIBED_TEXTS + 50)]
    encoder = HashedWords()
    describe(find_method("centroid").method, encoder, many)
    assert len(encoder.seen) == len(set(encoder.seen)) == catalog.DESCRIBED_TEXTS
    again = HashedWords()
    describe(find_method("centroid").method, again, many)
    assert again.seen == encoder.seen


def test_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="texts of an adapter: none; give at least one"):
        describe(DEFAULT.method, HashedWords(), [])
