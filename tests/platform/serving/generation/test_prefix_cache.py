"""What is kept of prompts: under which keys, for how long, in how much memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_platform.access.ticket import GrantedAdapter, TicketMint
from intarsia_platform.serving.prefix_cache import PrefixCache, PrefixScope, prefix_keys
from intarsia_platform.serving.prompt_pieces import borders, piece_end

PIECE_BYTES = 64
WORDS = st.text(alphabet="ab1", max_size=3)
SCOPES = st.builds(
    PrefixScope,
    salt=st.binary(max_size=2),
    base=WORDS,
    mixture=st.lists(
        st.tuples(WORDS, st.sampled_from((0.5, 1.0))), max_size=2, unique_by=lambda part: part[0]
    ).map(lambda parts: tuple(sorted(parts))),
    allowed=WORDS,
    router=WORDS,
)


def _ticket(who: str = "ann", *digests: str) -> Any:
    return TicketMint(b"s" * 32).issue(
        principal=who,
        adapters=[GrantedAdapter(digest=one, name=one) for one in digests],
        policy_version="",
        epoch=1,
        issued_at=0.0,
        expires_at=10.0,
    )


def _numbers(number: float) -> tuple[torch.Tensor, ...]:
    return (torch.full((PIECE_BYTES // 4,), number),)


def _cache(pieces: int = 100) -> PrefixCache:
    cache = PrefixCache("sha256:base", pieces * PIECE_BYTES)
    cache.epoch(lambda: 1)
    return cache


def _keep(cache: PrefixCache, prompt: Any, end: int, number: float, *adapters: str) -> None:
    cache.keep(prompt, end, adapters, PIECE_BYTES, lambda: _numbers(number))


def _taken(cache: PrefixCache, prompt: Any, end: int) -> float | None:
    found: list[float] = []
    taken = cache.take(prompt, end, lambda parts: found.append(float(parts[0][0])))
    assert taken == bool(found)
    return found[0] if found else None


def test_borders_are_places_that_are_the_same_for_every_prompt() -> None:
    assert list(borders(127)) == []
    assert list(borders(128)) == [128]
    assert list(borders(1024)) == [128, 256, 512, 768, 1024]
    for length in (200, 600, 1100):
        ends, begin = [], 0
        while begin < length:
            begin = piece_end(begin)
            ends.append(begin)
        assert [end for end in ends if end <= length] == list(borders(length))


@settings(deadline=None, max_examples=300)
@given(SCOPES, SCOPES)
def test_equal_keys_mean_equal_scopes(one: PrefixScope, other: PrefixScope) -> None:
    """Fields that only meet when they are strung together do not meet here."""
    tokens = [7] * 128
    assert (prefix_keys(one, tokens) == prefix_keys(other, tokens)) == (one == other)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 599), st.integers(0, 3))
def test_a_key_covers_every_token_before_its_border_and_none_behind(place: int, token: int) -> None:
    scope = PrefixScope(salt=b"s", base="b", mixture=(), allowed="a")
    tokens = [number % 3 for number in range(600)]
    changed = [*tokens]
    changed[place] = token
    before, after = prefix_keys(scope, tokens), prefix_keys(scope, changed)
    assert list(before) == [128, 256, 512]
    for border, key in before.items():
        assert (key == after[border]) == (place >= border or tokens[place] == token)
    assert len({*before.values()}) == 3


def test_every_principal_allowed_set_and_cache_has_keys_of_its_own() -> None:
    cache, tokens = _cache(), [3] * 128
    mixture = (("sha256:x", 1.0),)

    def key(ticket: Any, of: PrefixCache = cache, parts: Any = mixture) -> bytes:
        return of.beginnings(ticket, parts, tokens).keys[128]

    own = key(_ticket("ann", "sha256:x"))
    assert own == key(_ticket("ann", "sha256:x"))
    others = [
        key(_ticket("bob", "sha256:x")),
        key(_ticket("ann", "sha256:x", "sha256:y")),
        key(_ticket("ann", "sha256:x"), parts=(("sha256:x", 0.5),)),
        key(_ticket("ann", "sha256:x"), parts=()),
        key(_ticket("ann", "sha256:x"), of=_cache()),
    ]
    assert len({own, *others}) == 6


def test_the_router_has_a_part_in_the_key() -> None:
    scope = PrefixScope(salt=b"s", base="b", mixture=(), allowed="a")
    tokens = [3] * 128
    assert prefix_keys(scope, tokens) != prefix_keys(replace(scope, router="token 1"), tokens)


def test_what_was_used_longest_ago_leaves_first_and_later_pieces_before_earlier() -> None:
    cache = _cache(pieces=4)
    long = cache.beginnings(_ticket(), (), [1] * 512)
    other = cache.beginnings(_ticket(), (), [2] * 256)
    for number, end in enumerate((128, 256, 512)):
        _keep(cache, long, end, float(number))
    _keep(cache, other, 128, 10.0)
    _keep(cache, other, 256, 11.0)
    assert _taken(cache, long, 512) is None
    assert _taken(cache, long, 256) == 1.0
    assert _taken(cache, long, 128) == 0.0
    assert (_taken(cache, other, 128), _taken(cache, other, 256)) == (10.0, 11.0)
    figures = cache.figures
    assert (figures.hits, figures.misses, figures.bytes) == (4, 1, 4 * PIECE_BYTES)


def test_a_prompt_never_drives_out_its_own_beginning() -> None:
    cache = _cache(pieces=2)
    prompt = cache.beginnings(_ticket(), (), [1] * 1024)
    for number, end in enumerate((128, 256, 512, 768, 1024)):
        _keep(cache, prompt, end, float(number))
    assert [_taken(cache, prompt, end) for end in (128, 256, 512)] == [0.0, 1.0, None]


@pytest.mark.parametrize("capacity", [0, PIECE_BYTES - 1])
def test_without_room_nothing_is_kept(capacity: int) -> None:
    cache = PrefixCache("sha256:base", capacity)
    cache.epoch(lambda: 1)
    prompt = cache.beginnings(_ticket(), (), [1] * 128)
    _keep(cache, prompt, 128, 1.0)
    assert _taken(cache, prompt, 128) is None
    assert cache.figures.bytes == 0


def test_what_leaves_is_zeros_first() -> None:
    cache = _cache()
    prompt = cache.beginnings(_ticket(), (), [1] * 256)
    kept = {end: _numbers(end) for end in (128, 256)}
    cache.keep(prompt, 128, ["sha256:x"], PIECE_BYTES, lambda: kept[128])
    cache.keep(prompt, 256, ["sha256:y"], PIECE_BYTES, lambda: kept[256])
    cache.drop("sha256:x")
    assert not kept[128][0].any()
    assert bool(kept[256][0].all())
    cache.clear()
    assert not kept[256][0].any()


def test_a_request_that_came_before_a_drop_brings_nothing_back() -> None:
    cache = _cache()
    before = cache.beginnings(_ticket(), (("sha256:x", 1.0),), [1] * 256)
    _keep(cache, before, 128, 1.0, "sha256:x")
    cache.drop("sha256:x")
    cache.epoch(lambda: 2)
    _keep(cache, before, 256, 2.0, "sha256:x")
    assert cache.figures.bytes == 0


@pytest.mark.parametrize("fails", [False, True])
def test_another_epoch_or_none_forgets_everything(fails: bool) -> None:
    cache = _cache()
    prompt = cache.beginnings(_ticket(), (), [1] * 128)
    _keep(cache, prompt, 128, 1.0)
    assert cache.epoch(lambda: 1) == 1
    assert _taken(cache, prompt, 128) == 1.0

    def read() -> int:
        if fails:
            raise OSError("no database")
        return 2

    if fails:
        with pytest.raises(OSError, match="no database"):
            cache.epoch(read)
    else:
        assert cache.epoch(read) == 2
    assert _taken(cache, prompt, 128) is None
    assert cache.figures.bytes == 0


_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("use"), st.sampled_from("ab"), st.integers(0, 2), st.sampled_from((128, 256))
        ),
        st.tuples(st.just("drop"), st.sampled_from("xy")),
        st.tuples(st.just("epoch"), st.integers(1, 2)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(_STEPS, st.integers(0, 5))
def test_whatever_happens_only_the_own_comes_back_and_memory_is_bounded(
    steps: list[Any], pieces: int
) -> None:
    """Beside a plain record of what was computed: who, with what, since which epoch and drop."""
    cache = _cache(pieces)
    computed: dict[Any, float] = {}
    for number, (what, *rest) in enumerate(steps, start=1):
        if what == "drop":
            cache.drop(rest[0])
            computed = {key: one for key, one in computed.items() if rest[0] != key[1]}
        elif what == "epoch":
            before = cache._epoch
            cache.epoch(lambda epoch=rest[0]: epoch)  # type: ignore[misc]
            computed = computed if rest[0] == before else {}
        else:
            who, prompt, end = rest
            adapter = "xy"[prompt % 2]
            own = cache.beginnings(_ticket(who), ((adapter, 1.0),), [prompt] * 256)
            found = _taken(cache, own, end)
            assert found is None or found == computed[who, adapter, prompt, end]
            if found is None:
                computed[who, adapter, prompt, end] = float(number)
                _keep(cache, own, end, float(number), adapter)
        held = sum(entry.size for entry in cache._entries.values())
        assert cache.figures.bytes == held <= pieces * PIECE_BYTES
