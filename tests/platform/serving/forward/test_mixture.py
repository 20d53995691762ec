from __future__ import annotations

import math

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.serving.mixture import BASE, mixture_key, mixture_of


def test_the_order_of_choice_does_not_matter(benches):
    a, b, c, _ = benches["llama"].banked
    parts = [(a, 0.5), (b, 0.25), (c, 0.25)]
    assert mixture_of(parts) == mixture_of(parts[::-1])
    key = mixture_key(mixture_of(parts))
    assert [digest for digest, _ in key] == sorted([a.digest, b.digest, c.digest])
    assert dict(key) == {a.digest: 0.5, b.digest: 0.25, c.digest: 0.25}


def test_weight_zero_is_nothing(benches):
    a, b, *_ = benches["llama"].banked
    assert mixture_of([(a, 0.0)]) == mixture_of([]) == BASE
    assert mixture_of([(a, 0.0), (b, 1)]) == ((b, 1.0),)


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_are_finite(benches, weight):
    with pytest.raises(InputError, match="finite"):
        mixture_of([(benches["llama"].banked[0], weight)])


def test_an_adapter_comes_once(benches):
    adapter = benches["llama"].banked[0]
    with pytest.raises(InputError, match="once"):
        mixture_of([(adapter, 0.5), (adapter, 0.5)])
