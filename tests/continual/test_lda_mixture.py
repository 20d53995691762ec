"""The jointly fitted baseline: it finds groups, and what it does is what the others must not."""

from __future__ import annotations

import numpy as np
import pytest
from intarsia_client.errors import InputError
from intarsia_continual.descriptors.catalog import CATALOG
from intarsia_continual.lda_mixture import fit_lda_mixture
from intarsia_continual.retrieval import Retriever, restrict
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

NAMES = ("a", "b", "c", "d")


def groups(rows_of, spread: float) -> dict[str, np.ndarray]:
    return {name: rows_of(n, count=60, width=10, spread=spread) for n, name in enumerate(NAMES)}


def test_groups_that_lie_apart_are_found(rows_of) -> None:
    found = fit_lda_mixture(groups(rows_of, 0.2))
    assert found.names == NAMES
    for n in range(4):
        queries = rows_of(n, count=80, width=10, spread=0.2)[60:]
        probabilities = found.probabilities(queries)
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(20))
        assert (probabilities.argmax(axis=1) == n).all()


def test_pure_components_give_the_quadratic_discriminants_probabilities(rows_of) -> None:
    held = groups(rows_of, 0.2)
    found = fit_lda_mixture(held)
    reduced = found.discriminant.transform(np.concatenate(list(held.values())).astype(float))
    labels = np.repeat(np.arange(4), 60)
    assert found.shares == pytest.approx(np.eye(4), abs=1e-6)
    # One Gaussian a group is quadratic discriminant analysis, with another divisor.
    reference = QuadraticDiscriminantAnalysis(reg_param=1e-5).fit(reduced, labels)
    queries = rows_of(9, count=40, width=10, spread=1.0)
    expected = reference.predict(found.discriminant.transform(queries.astype(float)))
    assert (found.probabilities(queries).argmax(axis=1) == expected).mean() > 0.9


def test_hiding_a_group_changes_the_others_here_and_nowhere_else(rows_of) -> None:
    held = groups(rows_of, 1.5)
    queries = rows_of(1, count=160, width=10, spread=1.5)[60:]
    allowed = ("a", "b")
    before = fit_lda_mixture(held).probabilities(queries)[:, :2]
    after = fit_lda_mixture({n: held[n] for n in ("a", "b", "c")}).probabilities(queries)[:, :2]
    assert (before.argmax(axis=1) != after.argmax(axis=1)).mean() > 0.01
    for entry in CATALOG:
        retriever = Retriever(entry.method)
        answers = []
        for kept in (NAMES, NAMES[:3]):
            library = {
                name: entry.method.fit(
                    held[name], np.random.default_rng(0), encoder="sha256:" + "0" * 64
                )
                for name in kept
            }
            own = restrict(library, allowed)
            answers.append([retriever.choose(query, own) for query in queries])
        assert answers[0] == answers[1]
        assert any(answers[0])


def test_one_group_alone_is_refused(rows_of) -> None:
    with pytest.raises(InputError, match="groups: 1; give at least two"):
        fit_lda_mixture({"a": rows_of(1)})
