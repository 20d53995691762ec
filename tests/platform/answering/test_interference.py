"""The promise: what a caller may not use changes not one byte of what the caller gets.

One caller's whole view of a service is taken in a home that holds only what that caller may use,
and compared with the same view in homes with more: other groups, hidden ones whose texts are like
the caller's prompts, changed and removed ones, and other callers' answers in the same batch.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import astuple

import pytest
from intarsia_client.errors import IntarsiaError
from intarsia_platform.answering.service import Message, open_service
from intarsia_platform.answering.use import parse_use
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.home import Home
from intarsia_platform.serving.sampling import Sampling

USES = ("auto", "base", "sea", "sea=1,farm=3")
# Those that ann may not use, those that nobody has, and what is no use at all.
REFUSED = ("space", "vault", "atlantis", "sea,vault", "sea,atlantis", "vault=2,sea", "sea,sea")


def prompts(texts, count):
    """Beginnings of texts of every group, so that hidden ones would be chosen if they could be."""
    names = sorted(texts)
    pieces = [texts[names[n % len(names)]].format(n=20 + n).split() for n in range(count)]
    return [" ".join(words[: 4 + n % 7]) for n, words in enumerate(pieces)]


def told(call):
    """What a call gives, or the words it is refused with."""
    try:
        return call()
    except IntarsiaError as error:
        return type(error).__name__, str(error)


def whole(answered):
    # Text, adapters with weights and labels, tokens, finish: everything that is given out.
    return astuple(answered)


def view(service, texts, own_records, *, count=6, principal="ann"):
    """Everything that one principal can get."""

    def ask(prompt, use, sampling):
        ticket = service.authorize(principal)
        return told(lambda: whole(service.answer(ticket, prompt, parse_use(use), sampling)))

    seeded = Sampling(temperature=1.1, top_p=0.9, seed=7, max_tokens=8)
    greedy = Sampling(max_tokens=8)
    found = {"models": service.models(service.authorize(principal))}
    for prompt in prompts(texts, count):
        found["greedy", prompt] = ask(prompt, "auto", greedy)
        found["seeded", prompt] = ask(prompt, "auto", seeded)
    for use in (*USES, *REFUSED):
        found["use", use] = told(lambda use=use: ask("The captain", use, seeded))
    chat = [Message(role="user", text=texts["vault"])]
    found["chat"] = ask(chat, "auto", greedy)
    records = [*own_records("sea", 2), *own_records("vault", 2), *own_records("space", 1)]
    for use in ("auto", "base", "sea,farm", "vault", "atlantis"):
        ticket = service.authorize(principal)
        found["score", use] = told(
            lambda use=use, ticket=ticket: service.score(ticket, records, parse_use(use))
        )
    return found


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory, settings, texts, own_records):
    """Ann's view where there is nothing but what she may use."""
    folder = tmp_path_factory.mktemp("alone") / "home"
    shutil.copytree(trained, folder)
    home = Home.open(folder)
    with open_groups(home) as groups:
        groups.remove("space")
        groups.remove("vault")
    with open_service(home, settings=settings()) as service:
        return view(service, texts, own_records)


def test_hidden_added_changed_and_removed_adapters_change_no_byte(
    alone, home, settings, texts, own_records, new
):
    with open_service(home, settings=settings()) as service:
        # Were they not hidden, they would be used.
        ticket = service.authorize("all")
        chosen = service.choose(ticket, texts["vault"].format(n=3), parse_use("auto"))
        assert ticket.named("vault").digest in {choice.digest for choice in chosen}
        assert view(service, texts, own_records) == alone
        assert all(len(answer[1]) == 2 for key, answer in alone.items() if key[0] == "greedy")
        with open_groups(home) as groups:
            # Live: a hidden group that is the very same as one of ann's but for one record, one
            # that changes, one that goes.
            groups.add(new("twin", own_records("sea", 7), labels=["vault"]))
            assert view(service, texts, own_records, count=3).items() <= alone.items()
            groups.update("vault", add=own_records("sea", 3))
            groups.remove("space")
        assert view(service, texts, own_records, count=3).items() <= alone.items()


def test_policies_that_hide_more_from_others_change_no_byte(
    alone, home, settings, texts, own_records, put_policies
):
    narrow = [
        {"uid": {"type": "User", "id": name}, "parents": [],
         "attrs": {"groups": groups, "clearance": 1, "tenant": "acme"}}
        for name, groups in (("ann", ["sea", "farm"]), ("eve", ["vault"]))
    ]  # fmt: skip
    with open_service(home, settings=settings()) as service:
        put_policies(home, users=narrow)
        assert view(service, texts, own_records, count=3).items() <= alone.items()


def test_callers_of_other_adapters_in_the_same_batch_change_no_byte(
    alone, home, settings, texts, own_records
):
    ended = threading.Event()
    long = Sampling(temperature=1.5, seed=1, max_tokens=60)

    def keep_busy(service, principal, use):
        while not ended.is_set():
            service.answer(service.authorize(principal), texts["space"], parse_use(use), long)

    with open_service(home, settings=settings()) as service:
        others = [
            threading.Thread(target=keep_busy, args=(service, *words))
            for words in (("bob", "space"), ("all", "vault=2,sea"))
        ]
        for other in others:
            other.start()
        try:
            found = view(service, texts, own_records)
            assert service.statistics.running
        finally:
            ended.set()
            for other in others:
                other.join()
    assert found == alone


def test_unknown_and_forbidden_names_get_the_same_words(service, own_records):
    def refusals(name):
        lines = []
        for call in (
            lambda use: service.answer(service.authorize("ann"), "x", use),
            lambda use: service.score(service.authorize("ann"), own_records("sea"), use),
            lambda use: service.choose(service.authorize("ann"), "x", use),
        ):
            for words in (name, f"sea,{name}", f"{name}=2,sea=1"):
                lines.append(told(lambda call=call, words=words: call(parse_use(words))))
        return str(lines).replace(name, "NAME")

    assert refusals("vault") == refusals("space") == refusals("atlantis")
    assert refusals("vault").count("AccessError") == 9


@pytest.mark.slow
def test_two_hundred_prompts(copy, home, settings, texts):
    """Greedy and seeded in turn, all at once, so that they share batches as they come."""
    lean = copy("lean")
    with open_groups(lean) as groups:
        groups.remove("space")
        groups.remove("vault")
    found = []
    for place in (lean, home):
        with open_service(place, settings=settings(max_rows=16)) as service:
            started = [
                service.start(
                    service.authorize("ann"), prompt, parse_use("auto"),
                    Sampling(max_tokens=4, temperature=n % 2, seed=n),
                )
                for n, prompt in enumerate(prompts(texts, 200))
            ]  # fmt: skip
            found.append([(one.stream.read(), one.used, one.labels) for one in started])
    assert found[0] == found[1] and len(found[0]) == 200
    assert len({used for _, used, _ in found[0]}) > 2
