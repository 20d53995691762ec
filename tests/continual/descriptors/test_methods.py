"""Each method's scores against scikit-learn, SciPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors.base import Descriptor
from intarsia_continual.descriptors.centroid import CENTROID
from intarsia_continual.descriptors.document_similarity import DOCUMENT_SIMILARITY, DOCUMENTS
from intarsia_continual.descriptors.gaussian import DIRECTIONS, GAUSSIAN
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

ENCODER = bytes_digest(b"an encoder")


def fit(method, rows: np.ndarray, seed: int = 0) -> Descriptor:
    return method.fit(rows, np.random.default_rng(seed), encoder=ENCODER)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_document_similarity_is_the_mean_of_the_nearest_three(count, rows_of) -> None:
    documents, queries = rows_of(1, count=count), rows_of(2)
    found = DOCUMENT_SIMILARITY.score(fit(DOCUMENT_SIMILARITY, documents), queries)
    search = NearestNeighbors(n_neighbors=min(3, count), metric="cosine", algorithm="brute")
    distances, _ = search.fit(documents.astype(float)).kneighbors(queries.astype(float))
    assert found == pytest.approx(1 - distances.mean(axis=1), abs=1e-6)


def test_of_many_documents_a_part_is_kept_that_the_generator_draws(rows_of) -> None:
    documents = rows_of(1, count=2 * DOCUMENTS)
    kept = fit(DOCUMENT_SIMILARITY, documents).arrays["documents"]
    assert kept.shape == (DOCUMENTS, documents.shape[1])
    places = [np.flatnonzero((np.abs(documents - row) < 1e-6).all(axis=1))[0] for row in kept]
    assert places == sorted(set(places))
    again, other = (fit(DOCUMENT_SIMILARITY, documents, seed) for seed in (0, 1))
    assert (again.arrays["documents"] == kept).all()
    assert (other.arrays["documents"] != kept).any()


def test_a_documents_vector_is_forgotten_when_the_rest_is_described(rows_of) -> None:
    documents = rows_of(1, count=30)
    rest = fit(DOCUMENT_SIMILARITY, documents[1:]).arrays["documents"]
    assert np.abs(rest - documents[0]).max(axis=1).min() > 1e-3


def test_centroid_is_the_cosine_with_the_mean(rows_of) -> None:
    documents, queries = rows_of(1, count=40), rows_of(2)
    found = CENTROID.score(fit(CENTROID, documents), queries)
    mean = documents.astype(np.float64).mean(axis=0)
    expected = cosine_similarity(queries.astype(np.float64), mean[None])[:, 0]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("count", "width"), [(4, 12), (13, 12), (100, 12), (60, 100)])
def test_gaussian_is_the_density_with_oracle_approximating_shrinkage(count, width, rows_of):
    documents, queries = rows_of(1, count=count, width=width), rows_of(2, width=width)
    found = GAUSSIAN.score(fit(GAUSSIAN, documents), queries)
    shrunk = OAS().fit(documents.astype(np.float64))
    density = multivariate_normal(shrunk.location_, shrunk.covariance_).logpdf(queries)
    assert found == pytest.approx(density / width, rel=1e-4)


def test_gaussian_with_fewer_directions_shares_out_the_rest(rows_of) -> None:
    width = DIRECTIONS + 30
    documents = rows_of(1, count=400, width=width)
    queries = rows_of(2, width=width)
    descriptor = fit(GAUSSIAN, documents)
    assert descriptor.arrays["directions"].shape == (DIRECTIONS, width)
    shrunk = OAS().fit(documents.astype(np.float64))
    values, directions = np.linalg.eigh(shrunk.covariance_)
    values[:-DIRECTIONS] = values[:-DIRECTIONS].mean()
    covariance = (directions * values) @ directions.T
    density = multivariate_normal(shrunk.location_, covariance).logpdf(queries)
    assert GAUSSIAN.score(descriptor, queries) == pytest.approx(density / width, rel=1e-4)


def test_a_gaussian_from_elsewhere_with_no_variance_gives_finite_scores(rows_of) -> None:
    whole = fit(GAUSSIAN, rows_of(1))
    none = {"variances": np.full_like(whole.arrays["variances"], -1), "rest": np.zeros(1, "f4")}
    hostile = Descriptor(method="gaussian", encoder=ENCODER, arrays={**whole.arrays, **none})
    assert np.isfinite(GAUSSIAN.score(hostile, rows_of(2))).all()
