"""What the study measures of each retriever, on one data set with one encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod
from intarsia_continual.descriptors.catalog import CATALOG, describe
from intarsia_continual.encoders import TextEncoder
from intarsia_continual.lda_mixture import fit_lda_mixture
from intarsia_continual.retrieval import Retriever, restrict
from intarsia_continual.retrieval_metrics import (
    brier_score,
    membership_auc,
    top_k_accuracy,
    total_variation,
)
from retrieval_groups import Groups

THRESHOLDS = (0.01, 0.02, 0.05, 0.1)
TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
JOINT = "LDA + Gaussian mixture"

Weights = dict[str, float]


class RememberingEncoder:
    """An encoder that encodes each text once."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._seen: dict[str, FloatArray] = {}
        self.name, self.digest, self.width = encoder.name, encoder.digest, encoder.width

    def encode(self, texts: Sequence[str]) -> FloatArray:
        new = [text for text in dict.fromkeys(texts) if text not in self._seen]
        self._seen.update(zip(new, self._encoder.encode(new), strict=True))
        return np.array([self._seen[text] for text in texts], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One query of the interference figure.

    Args:
        query: Its vector.
        allowed: What the person who asks may use, half of the groups, the query's own among them.
        hidden: A group that the person may not use, and that is taken away.
    """

    query: FloatArray
    allowed: tuple[str, ...]
    hidden: str


def remembering(method: DescriptorMethod) -> DescriptorMethod:
    """The same method, that compares each descriptor with each query once.

    Descriptors have to live as long as the method.
    """
    seen: dict[tuple[int, bytes], Any] = {}

    def compare(arrays: Mapping[str, FloatArray], queries: Any) -> Any:
        key = id(arrays), queries.tobytes()
        if key not in seen:
            seen[key] = method.compare(arrays, queries)
        return seen[key]

    return replace(method, compare=compare)


class Independent:
    """A retriever of the catalogue, each group described by itself."""

    def __init__(self, method: DescriptorMethod, encoder: TextEncoder, groups: Groups) -> None:
        self.name = method.name
        self.method = remembering(method)
        self._plain, self._encoder, self._groups = method, encoder, groups
        self.descriptors = self.fit_without("")
        self._without: dict[str, Mapping[str, Descriptor]] = {}

    def fit_without(self, hidden: str) -> dict[str, Descriptor]:
        return {
            name: describe(self._plain, self._encoder, texts)
            for name, texts in self._groups.documents.items()
            if name != hidden
        }

    def ranking(self, query: FloatArray) -> tuple[str, ...]:
        return Retriever(self.method, threshold=None).ranking(query, self.descriptors)

    def weights(self, query: FloatArray, allowed: Sequence[str], hidden: str) -> Weights:
        if hidden and hidden not in self._without:
            self._without[hidden] = self.fit_without(hidden)
        library = self._without[hidden] if hidden else self.descriptors
        chosen = Retriever(self.method, threshold=None).choose(query, restrict(library, allowed))
        return {one.digest: one.weight for one in chosen}

    def own_scores(self, name: str, queries: FloatArray) -> FloatArray:
        return self.method.score(self.descriptors[name], queries).astype(np.float32)


class Joint:
    """AdapterSwap's retriever, fitted on all groups together."""

    name = JOINT

    def __init__(self, encoder: TextEncoder, groups: Groups) -> None:
        self._documents = {name: encoder.encode(texts) for name, texts in groups.documents.items()}
        self._fitted = {"": fit_lda_mixture(self._documents)}

    def ranking(self, query: FloatArray) -> tuple[str, ...]:
        weights = self.weights(query, list(self._documents), "")
        return tuple(sorted(weights, key=lambda name: (-weights[name], name))[:3])

    def weights(self, query: FloatArray, allowed: Sequence[str], hidden: str) -> Weights:
        if hidden not in self._fitted:
            rest = {name: rows for name, rows in self._documents.items() if name != hidden}
            self._fitted[hidden] = fit_lda_mixture(rest)
        fitted = self._fitted[hidden]
        found = dict(zip(fitted.names, fitted.probabilities(query[None])[0], strict=True))
        # A floor, so that a query far from all of them has an answer too.
        kept = {name: float(found[name]) + 1e-12 for name in allowed}
        return {name: share / sum(kept.values()) for name, share in kept.items()}

    def own_scores(self, name: str, queries: FloatArray) -> FloatArray:
        fitted = self._fitted[""]
        found = fitted.probabilities(queries)[:, fitted.names.index(name)]
        return found.astype(np.float32)


def measure(groups: Groups, encoder: TextEncoder) -> list[dict[str, Any]]:
    """All figures of one data set with one encoder.

    Args:
        groups: The data set.
        encoder: The encoder.

    Returns:
        A row for each retriever and each way of asking.
    """
    encoder = RememberingEncoder(encoder)
    retrievers: list[Independent | Joint] = [
        *(Independent(entry.method, encoder, groups) for entry in CATALOG),
        Joint(encoder, groups),
    ]
    rows = []
    for asked_with in ("queries", "prompts"):
        texts: Mapping[str, Sequence[str]] = getattr(groups, asked_with)
        if not texts:
            continue
        queries = {name: encoder.encode(found) for name, found in texts.items()}
        for retriever in retrievers:
            row = {"data": groups.name, "encoder": encoder.name, "asked with": asked_with}
            row |= {"retriever": retriever.name, **common_figures(retriever, queries)}
            # A prompt is told from a document by its length alone.
            if asked_with == "queries":
                row["leak"] = leak(retriever, encoder, groups, queries)
            if isinstance(retriever, Independent):
                strangers = encoder.encode(groups.strangers) if groups.strangers else None
                row |= abstention(retriever, queries, strangers)
                row["brier"] = by_temperature(retriever, queries)
            rows.append(row)
    return rows


def pairs(queries: Mapping[str, FloatArray]) -> Iterator[tuple[str, FloatArray]]:
    for name, found in queries.items():
        for query in found:
            yield name, query


def common_figures(
    retriever: Independent | Joint, queries: Mapping[str, FloatArray]
) -> dict[str, Any]:
    """Accuracy over all groups, and what hiding one group changes for half-allowed people."""
    truth = [name for name, _ in pairs(queries)]
    rankings = [retriever.ranking(query) for _, query in pairs(queries)]
    changed, shifts = [], []
    for one in interference_cases(queries):
        before = retriever.weights(one.query, one.allowed, "")
        after = retriever.weights(one.query, one.allowed, one.hidden)
        changed.append(max(before, key=before.__getitem__) != max(after, key=after.__getitem__))
        shifts.append(total_variation(before, after))
    return {
        **{f"top-{k}": top_k_accuracy(rankings, truth, k) for k in (1, 2, 3)},
        "changed": float(np.mean(changed)),
        "shift": float(np.mean(shifts)),
    }


def interference_cases(queries: Mapping[str, FloatArray], seed: int = 0) -> Iterator[Asked]:
    """For each query a person who may use half of the groups, and a group outside that half."""
    generator = np.random.default_rng(seed)
    names = sorted(queries)
    for own, query in pairs(queries):
        others = [name for name in names if name != own]
        order = [others[place] for place in generator.permutation(len(others))]
        half = len(names) // 2 - 1
        yield Asked(query=query, allowed=(own, *order[:half]), hidden=order[half])


def leak(
    retriever: Independent | Joint,
    encoder: TextEncoder,
    groups: Groups,
    queries: Mapping[str, FloatArray],
) -> float:
    """Mean over the groups of how well scores tell documents from texts that were left out."""
    return float(
        np.mean(
            [
                membership_auc(
                    retriever.own_scores(name, encoder.encode(groups.documents[name])),
                    retriever.own_scores(name, found),
                )
                for name, found in queries.items()
            ]
        )
    )


def abstention(
    retriever: Independent, queries: Mapping[str, FloatArray], strangers: FloatArray | None
) -> dict[str, Any]:
    """By threshold: who is answered by the base alone, and should be or should not."""
    found: dict[str, Any] = {"abstains": {}, "own left out": {}, "abstains, own hidden": {}}
    if strangers is not None:
        found["abstains, stranger"] = {}
    everything = retriever.descriptors
    for threshold in THRESHOLDS:
        chooser = Retriever(retriever.method, threshold=threshold)
        without, left_out, hidden = [], [], []
        for own, query in pairs(queries):
            without.append(not chooser.ranking(query, everything))
            left_out.append(not chooser.ranking(query, {own: everything[own]}))
            others = restrict(everything, set(everything) - {own})
            hidden.append(not chooser.ranking(query, others))
        found["abstains"][threshold] = float(np.mean(without))
        found["own left out"][threshold] = float(np.mean(left_out))
        found["abstains, own hidden"][threshold] = float(np.mean(hidden))
        if strangers is not None:
            refused = [not chooser.ranking(query, everything) for query in strangers]
            found["abstains, stranger"][threshold] = float(np.mean(refused))
    return found


def by_temperature(retriever: Independent, queries: Mapping[str, FloatArray]) -> dict[float, float]:
    """How far the weights are from the right ones, by temperature."""
    found = {}
    for temperature in TEMPERATURES:
        chooser = Retriever(retriever.method, threshold=None, temperature=temperature)
        chosen = [chooser.choose(query, retriever.descriptors) for _, query in pairs(queries)]
        found[temperature] = brier_score(chosen, [name for name, _ in pairs(queries)])
    return found
