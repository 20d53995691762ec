from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from intarsia_client.errors import AccessError, InputError, StorageError
from intarsia_platform.registry.epoch import bump
from intarsia_platform.serving.engine import EngineBusy, Request
from intarsia_platform.serving.rows import first_tokens
from intarsia_platform.serving.streams import Finish

PROMPT = "one two three"


def _tokens(base: Any, text: str) -> list[int]:
    return [*first_tokens(base), *base.tokenizer(text, add_special_tokens=False)["input_ids"]]


def _paused(stream: Any) -> tuple[threading.Event, threading.Event, list[Any]]:
    """Let the engine wait inside a stream's first event, and note all of them."""
    reached, go_on, events = threading.Event(), threading.Event(), []

    def listen(event: Any) -> None:
        events.append(event)
        if len(events) == 1:
            reached.set()
            assert go_on.wait(60)

    stream.listen(listen)
    return reached, go_on, events


def _is_idle(engine: Any) -> bool:
    found = engine.statistics
    cache = engine._runner.cache
    stores = [one for layer in cache.layers for one in (layer.keys, layer.values)]
    assert not any(bool(one.any()) for one in stores if one is not None)
    return (found.running, found.waiting, found.free) == (0, 0, cache.slots)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "stories"])
def test_greedy_answers_are_those_of_transformers_and_of_peft(
    world: Callable[..., Any], generated: Callable[..., list[int]], kind: str
) -> None:
    here = world(kind)
    here.add("r4", "red", rank=4)
    here.add("r7", "red", rank=7)
    engine = here.engine()
    text = "Once upon a time" if kind == "stories" else PROMPT
    prompt = _tokens(here.base, text)
    expected = {
        name: generated(here.base, prompt, 16, here.adapters.get(name)) for name in ("", "r4", "r7")
    }
    streams = {
        name: engine.submit(here.request("ann", text, *[name] * bool(name), max_tokens=16))
        for name in expected
    }
    for name, stream in streams.items():
        answer = stream.read()
        assert list(answer.tokens) == expected[name]
        ended = expected[name][-1] == 3 - (kind == "stories")
        assert answer.finish == (Finish.STOP if ended else Finish.LENGTH)
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    assert _is_idle(engine)


def test_a_mixture_is_the_exact_sum(
    world: Callable[..., Any], generated: Callable[..., list[int]]
) -> None:
    from dataclasses import replace

    here = world("llama")
    here.add("one", "red", rank=3)
    here.add("two", "red", rank=5)
    first, second = here.adapters["one"], here.adapters["two"]
    joined = {
        name: replace(
            factors,
            a=np.concatenate([factors.a, second.modules[name].a]),
            b=np.concatenate([0.75 * factors.b, 0.25 * second.modules[name].b], axis=1),
        )
        for name, factors in first.modules.items()
    }
    expected = generated(here.base, _tokens(here.base, PROMPT), 12, replace(first, modules=joined))
    request = here.request("ann", PROMPT, ("two", 0.25), ("one", 0.75))
    assert list(here.engine().submit(request).read().tokens) == expected


def test_text_and_tokens_are_the_same_prompt(world: Callable[..., Any]) -> None:
    here = world("llama")
    engine = here.engine()
    text = engine.submit(here.request("zoe", PROMPT)).read()
    tokens = engine.submit(here.request("zoe", _tokens(here.base, PROMPT))).read()
    assert text == tokens


def test_a_long_prompt_goes_in_pieces(
    world: Callable[..., Any], generated: Callable[..., list[int]]
) -> None:
    here = world("stories")
    engine = here.engine(row_tokens=400, shapes=None)
    prompt = _tokens(here.base, "Lily and Tom went to the park. They saw a big dog. " * 40)[:330]
    answer = engine.submit(here.request("zoe", prompt, max_tokens=10)).read()
    assert list(answer.tokens) == generated(here.base, prompt, 10)


def test_stop_texts_end_an_answer_across_tokens(world: Callable[..., Any]) -> None:
    here = world("stories")
    engine = here.engine()
    whole = engine.submit(here.request("zoe", "Once upon a time", max_tokens=40)).read()
    pieces = [event.text for event in engine.submit(here.request("zoe", "Once upon a time"))]
    assert whole.text.startswith("".join(pieces))
    stop = whole.text[20:27]
    answer = engine.submit(
        here.request("zoe", "Once upon a time", max_tokens=40, stop=("never there", stop))
    ).read()
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finish is Finish.STOP
    assert answer.tokens == whole.tokens[: len(answer.tokens)]


def test_an_answer_ends_where_its_row_is_full(world: Callable[..., Any]) -> None:
    here = world("llama")
    engine = here.engine()
    prompt = [2, *[9] * 89]
    answer = engine.submit(here.request("zoe", prompt, max_tokens=50)).read()
    assert answer.finish is Finish.LENGTH or 3 in answer.tokens
    assert len(answer.tokens) <= 6
    for wrong in ([2] * 96, [], [2, 300], [-1]):
        with pytest.raises(InputError, match="prompt"):
            engine.submit(here.request("zoe", wrong))


def test_more_requests_than_rows_take_turns_and_nobody_is_crowded_out(
    world: Callable[..., Any],
) -> None:
    here = world("llama")
    engine = here.engine(max_rows=2)
    first = engine.submit(here.request("ann", PROMPT, max_tokens=60, temperature=2.0, seed=1))
    reached, go_on, _ = _paused(first)
    assert reached.wait(60)
    crowd = [engine.submit(here.request("ann", PROMPT, max_tokens=4)) for _ in range(6)]
    other = engine.submit(here.request("bob", PROMPT, max_tokens=4))
    order: list[str] = []
    for name, stream in [*((f"ann {n}", one) for n, one in enumerate(crowd)), ("bob", other)]:
        stream.listen(lambda event, name=name: order.append(name) if event.finish else None)
    go_on.set()
    while len(order) < 7:
        threading.Event().wait(0.01)
    assert order[0] == "bob"
    assert [name for name in order if name != "bob"] == [f"ann {n}" for n in range(6)]
    first.cancel()


def test_what_a_ticket_does_not_grant_is_refused_in_one_wording(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("red", "red")
    here.add("blue", "blue")
    engine = here.engine()
    known = here.digests["blue"]
    here.digests["nowhere"] = "sha256:" + "0" * 64
    lines = []
    for who, names in (("ann", ["blue"]), ("ann", ["nowhere"]), ("eve", ["red", "blue"])):
        with pytest.raises(AccessError) as caught:
            engine.submit(here.request(who, PROMPT, *names))
        lines.append(str(caught.value).split(" ", 2)[2])
    assert len(set(lines)) == 1
    assert known not in here.bank.digests
    with pytest.raises(AccessError, match="ticket"):
        request = here.request("ann", PROMPT)
        engine.submit(request).read()
        engine.submit(request)
    forged = here.request("bob", PROMPT, "blue")
    from dataclasses import replace

    with pytest.raises(AccessError, match="ticket"):
        engine.submit(replace(forged, ticket=replace(forged.ticket, principal="ann")))
    assert _is_idle(engine)


@pytest.mark.parametrize("how", ["policy", "removed"])
def test_a_right_taken_away_ends_the_stream_before_its_next_token(
    world: Callable[..., Any], how: str
) -> None:
    here = world("llama")
    here.add("red", "red")
    here.add("blue", "blue")
    engine = here.engine()
    running = engine.submit(here.request("ann", PROMPT, "red", max_tokens=80, seed=1))
    reached, go_on, events = _paused(running)
    assert reached.wait(60)
    other = engine.submit(here.request("bob", PROMPT, "blue", max_tokens=8, seed=2))
    waiting = engine.submit(here.request("ann", PROMPT, "red"))
    if how == "policy":
        here.set_people(ann=(), bob=("blue",), eve=(), zoe=())
    else:
        here.remove("red")
    go_on.set()
    assert len(other.read().tokens) >= 1
    assert other.finish in (Finish.LENGTH, Finish.STOP)
    assert waiting.read().finish is Finish.REVOKED
    assert [event.finish for event in events] == [None, Finish.REVOKED]
    assert events[1].token is None
    assert events[1].text == ""
    assert _is_idle(engine)
    if how == "removed":
        assert here.bank.digests == (other and here.digests["blue"],)


def test_an_epoch_that_takes_nothing_away_ends_nothing(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("red", "red")
    engine = here.engine()
    expected = engine.submit(here.request("ann", PROMPT, "red")).read()
    stream = engine.submit(here.request("ann", PROMPT, "red"))
    reached, go_on, events = _paused(stream)
    assert reached.wait(60)
    with here.database.begin() as connection:
        bump(connection)
    go_on.set()
    while not (events and events[-1].finish):
        threading.Event().wait(0.01)
    assert tuple(event.token for event in events) == expected.tokens


def test_a_ticket_that_runs_out_ends_its_stream(world: Callable[..., Any]) -> None:
    now = [1000.0]
    here = world("llama", clock=lambda: now[0], lifetime_seconds=60.0)
    engine = here.engine(clock=lambda: now[0])
    stream = engine.submit(here.request("zoe", PROMPT, max_tokens=80))
    reached, go_on, events = _paused(stream)
    assert reached.wait(60)
    now[0] += 60
    go_on.set()
    while len(events) < 2:
        threading.Event().wait(0.01)
    assert events[1].finish is Finish.REVOKED
    assert _is_idle(engine)


def test_a_caller_who_leaves_frees_the_slot(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("red", "red")
    engine = here.engine(max_rows=1)
    running = engine.submit(here.request("ann", PROMPT, "red", max_tokens=80))
    reached, go_on, events = _paused(running)
    assert reached.wait(60)
    waiting = engine.submit(here.request("ann", PROMPT, "red", max_tokens=80))
    last = engine.submit(here.request("zoe", PROMPT, max_tokens=3))
    waiting.cancel()
    running.cancel()
    go_on.set()
    assert waiting.read().finish is Finish.CANCELLED
    assert last.read().finish in (Finish.LENGTH, Finish.STOP)
    assert [event.finish for event in events] == [None, Finish.CANCELLED]
    assert _is_idle(engine)


def test_numbers_that_overflow_end_one_row_alone(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("wild", "red", scale=1e37)
    here.add("tame", "blue")
    engine = here.engine()
    expected = engine.submit(here.request("bob", PROMPT, "tame")).read()
    tame = engine.submit(here.request("bob", PROMPT, "tame"))
    wild = engine.submit(here.request("ann", PROMPT, "wild"))
    after = engine.submit(here.request("bob", PROMPT, "tame"))
    assert wild.read().finish is Finish.FAILED
    assert isinstance(wild.error, InputError)
    assert tame.read() == expected
    assert after.read() == expected
    assert _is_idle(engine)


def test_a_busy_or_closed_engine_says_so(world: Callable[..., Any]) -> None:
    here = world("llama")
    engine = here.engine(max_rows=1, max_waiting=1)
    running = engine.submit(here.request("zoe", PROMPT, max_tokens=80))
    reached, go_on, events = _paused(running)
    assert reached.wait(60)
    waiting = engine.submit(here.request("zoe", PROMPT))
    request = here.request("zoe", PROMPT)
    with pytest.raises(EngineBusy, match="wait"):
        engine.submit(request)
    closing = threading.Thread(target=engine.close)
    closing.start()
    go_on.set()
    closing.join()
    assert waiting.read().finish is Finish.CANCELLED
    assert events[-1].finish is Finish.CANCELLED
    with pytest.raises(EngineBusy, match="closed"):
        engine.submit(request)
    here.authorizer.admit(request.ticket)


class _Failing:
    """The real authoriser whose database goes away."""

    def __init__(self, real: Any) -> None:
        self.real, self.gone = real, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def epoch(self) -> int:
        if self.gone:
            raise StorageError("database", "gone", "bring it back")
        return int(self.real.epoch())


def test_without_access_control_nothing_goes_on(world: Callable[..., Any]) -> None:
    here = world("llama")
    admission = _Failing(here.authorizer)
    engine = here.engine(admission=admission)
    stream = engine.submit(here.request("zoe", PROMPT, max_tokens=80))
    reached, go_on, events = _paused(stream)
    assert reached.wait(60)
    admission.gone = True
    go_on.set()
    while len(events) < 2:
        threading.Event().wait(0.01)
    assert (events[1].finish, events[1].token) == (Finish.FAILED, None)
    assert isinstance(stream.error, StorageError)
    admission.gone = False
    assert engine.submit(here.request("zoe", PROMPT)).read().tokens


def test_a_call_that_fails_ends_its_rows_and_the_engine_goes_on(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world("llama")
    engine = here.engine()
    expected = engine.submit(here.request("zoe", PROMPT)).read()
    with monkeypatch.context() as patch:
        patch.setattr(
            here.base.model.lm_head, "forward", lambda _: (_ for _ in ()).throw(MemoryError())
        )
        stream = engine.submit(here.request("zoe", PROMPT))
        assert stream.read().finish is Finish.FAILED
        assert isinstance(stream.error, MemoryError)
    assert _is_idle(engine)
    assert engine.submit(here.request("zoe", PROMPT)).read() == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world("llama")
    engine = here.engine(max_rows=1)
    running = engine.submit(here.request("zoe", PROMPT, max_tokens=80))
    reached, go_on, events = _paused(running)
    assert reached.wait(60)
    waiting = engine.submit(here.request("zoe", PROMPT))
    monkeypatch.setattr(
        here.base.model.lm_head, "forward", lambda _: (_ for _ in ()).throw(SystemExit(1))
    )
    go_on.set()
    assert waiting.read().finish is Finish.FAILED
    assert events[-1].finish is Finish.FAILED
    with pytest.raises(EngineBusy, match="closed"):
        engine.submit(here.request("zoe", PROMPT))


def test_an_engine_that_cannot_measure_is_not_made(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from intarsia_platform.serving.engine import Engine

    here = world("llama")
    monkeypatch.setattr(
        here.base.model.lm_head, "forward", lambda _: (_ for _ in ()).throw(MemoryError("full"))
    )
    with pytest.raises(MemoryError, match="full"):
        Engine(here.served, here.bank, here.authorizer, max_rows=2)


def test_many_threads_submit_and_leave_and_all_streams_end(world: Callable[..., Any]) -> None:
    here = world("llama")
    names = [f"a{number}" for number in range(5)]
    for number, name in enumerate(names):
        here.add(name, "red", rank=1 + number)
    engine = here.engine(max_rows=8)
    expected = {
        name: engine.submit(here.request("ann", PROMPT, name, max_tokens=6)).read()
        for name in names
    }
    wrong: list[Any] = []

    def call(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(4):
            name = names[generator.integers(len(names))]
            with engine.submit(here.request("ann", PROMPT, name, max_tokens=6)) as stream:
                if generator.random() < 0.4:
                    stream.get(timeout=60)
                    stream.cancel()
                    stream.read()
                elif stream.read() != expected[name]:
                    wrong.append(name)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert _is_idle(engine)
    with here.bank.lease([]):
        assert all(entry.leases == 0 for entry in here.bank._entries.values())


def test_an_unknown_prompt_does_not_spend_the_ticket(world: Callable[..., Any]) -> None:
    here = world("llama")
    engine = here.engine()
    request = here.request("zoe", [])
    with pytest.raises(InputError, match="prompt"):
        engine.submit(request)
    again = Request(ticket=request.ticket, prompt=PROMPT, sampling=request.sampling)
    assert engine.submit(again).read().tokens
