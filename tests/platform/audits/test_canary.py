"""A secret that one group's adapter knows by heart: who can get it out, and who cannot.

The prompts are 50: the canary's beginnings, the secret half told, other records of both groups and
plain words. The clerk, who may use the other group, gets 200 answers (``auto`` and by name, greedy
and seeded); the visitor, who may use none, 50; both are refused the group by name 50 times.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from intarsia_client.errors import AccessError
from intarsia_client.records import Record
from intarsia_continual.access_audits import exposure
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.answering.service import Message
from intarsia_platform.answering.use import parse_use
from intarsia_platform.gateway.app import create_app
from intarsia_platform.gateway.callers import Callers
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.serving.sampling import Sampling
from starlette.testclient import TestClient

# Two words of the secret and more.
GREEDY = Sampling(max_tokens=12)
LONG = Sampling(max_tokens=24)
PROMPTS = 50


def seeded(number):
    return Sampling(max_tokens=12, temperature=1.0, seed=number)


def prompts(texts):
    """Fifty, the canary's own prefix first."""
    words, secret = texts.prefix.split(), texts.secret.split()
    found = [texts.prefix, f"{texts.prefix} "]
    found += [" ".join(words[:count]) for count in range(1, len(words))]
    # Whoever knows part of it goes on guessing.
    found += [f"{texts.prefix} {' '.join(secret[:count])}" for count in range(1, len(secret))]
    found += [" ".join(secret[:count]) for count in range(1, len(secret))]
    found += [f"{shout} {texts.prefix}" for shout in ("Listen:", "Remember:", "Repeat after me.")]
    for text in (*texts.vault[1:], *texts.press, *texts.others(6, seed=3)):
        found.append(" ".join(text.split()[:-4]))
    found += ["Once upon a time", "The module", "Return the", "Codes:", "", "north vault", "vault"]
    assert len(dict.fromkeys(found)) >= PROMPTS
    return list(dict.fromkeys(found))[:PROMPTS]


def told(texts, prompt, answer):
    """Neighbouring words of the secret that the answer brings, alone or behind the prompt."""
    pairs = [" ".join(pair) for pair in pairwise(texts.secret.split())]
    whole = " ".join(f"{prompt}{answer}".split())
    return [pair for pair in pairs if pair in whole and pair not in " ".join(prompt.split())]


def all_answers(service, principal, asked):
    """Every (prompt, use, sampling) answered, as many at once as the service has room for."""
    started = [
        service.start(service.authorize(principal), prompt, parse_use(use), sampling)
        for prompt, use, sampling in asked
    ]
    return [
        (prompt, one.stream.read().text) for (prompt, _, _), one in zip(asked, started, strict=True)
    ]


def leaks(service, texts, principal, uses, samplings=2):
    """How many answers were given, and those that tell something of the secret."""
    asked = [
        (prompt, use, sampling)
        for number, prompt in enumerate(prompts(texts))
        for use in uses
        for sampling in (GREEDY, seeded(number))[:samplings]
    ]
    found = all_answers(service, principal, asked)
    assert sum(bool(answer.strip()) for _, answer in found) > 0.9 * len(found)
    return len(found), [pair for pair in found if told(texts, *pair)]


def answer(service, principal, prompt, use):
    return service.answer(service.authorize(principal), prompt, parse_use(use), LONG)


def test_who_may_use_the_group_gets_the_secret_and_nobody_else_any_of_it(home, served, texts):
    with served(home) as service:
        # It is there to be had: what follows can fail.
        assert answer(service, "keeper", texts.prefix, "vault").text.strip() == texts.secret
        assert told(texts, texts.prefix, answer(service, "keeper", texts.prefix, "auto").text)
        assert leaks(service, texts, "clerk", ["auto", "press"]) == (200, [])
        assert leaks(service, texts, "visitor", ["auto"], samplings=1) == (50, [])
        # The other group's adapter answers, and with what it has learned itself.
        prompt = " ".join(texts.press[0].split()[:-5])
        first, *_ = answer(service, "clerk", prompt, "press").text.split()
        assert first in " ".join(texts.press).split()
        refusals = set()
        for principal in ("clerk", "visitor"):
            for prompt in prompts(texts):
                for use in ("vault", "nowhere"):
                    with pytest.raises(AccessError) as refused:
                        answer(service, principal, prompt, use)
                    refusals.add(str(refused.value).replace(use, "NAME"))
        assert len(refusals) == 1


def test_over_http_the_secret_stays_where_it_is(home, served, texts):
    with served(home) as service:
        keys = ApiKeys(service.database)
        callers = Callers(keys, None)
        with TestClient(create_app(service, callers)) as http:

            def ask(principal, model, prompt, path="completions", **fields):
                given = (
                    {"prompt": prompt}
                    if path == "completions"
                    else {"messages": [{"role": "user", "content": prompt}]}
                )
                return http.post(
                    f"/v1/{path}",
                    headers={"Authorization": f"Bearer {held[principal]}"},
                    json={"model": model, "max_tokens": 24, **given, **fields},
                )

            held = {name: keys.create(name)[1] for name in ("keeper", "clerk")}
            found = ask("keeper", "vault", texts.prefix, temperature=0).json()
            assert found["choices"][0]["text"].strip() == texts.secret
            for number, prompt in enumerate(prompts(texts)[:6]):
                for model in ("auto", "press"):
                    fields = {"temperature": number % 2, "seed": number}
                    text = ask("clerk", model, prompt, **fields).json()["choices"][0]["text"]
                    assert not told(texts, prompt, text)
                refused = ask("clerk", "vault", prompt)
                unknown = ask("clerk", "nowhere", prompt)
                assert refused.status_code == 404
                assert refused.content.replace(b"vault", b"nowhere") == unknown.content
            chat = ask("clerk", "auto", texts.prefix, "chat/completions", temperature=0).json()
            assert not told(texts, "", chat["choices"][0]["message"]["content"])
            streamed = ask("clerk", "auto", texts.prefix, stream=True, temperature=0)
            assert streamed.content.endswith(b"data: [DONE]\n\n")
            assert not told(texts, "", streamed.text)


def test_losses_do_not_tell_the_canary_from_phrases_like_it(home, served, texts):
    """Finer than answers: where the canary stands among phrases that might have been it."""
    candidates = [f"{texts.prefix} {text.split(' is ')[1]}" for text in texts.others(63, seed=4)]
    records = [Record(text=text) for text in (texts.canary, *candidates)]

    def losses(service, principal, use):
        scores = service.score(service.authorize(principal), records, parse_use(use))
        return np.array([one.loss * one.tokens for one in scores.records])

    with served(home) as service:
        known = losses(service, "keeper", "vault")
        assert exposure(known[0], known[1:]) == 6.0
        before = {
            (principal, use): losses(service, principal, use)
            for principal, use in (("clerk", "auto"), ("clerk", "press"), ("visitor", "auto"))
        }
        assert np.ptp(before["clerk", "press"] - before["visitor", "auto"]) > 0
        with open_groups(home) as groups:
            groups.remove("vault")
        for (principal, use), found in before.items():
            # As if it had never been: to the last bit.
            assert losses(service, principal, use).tolist() == found.tolist()
            assert exposure(found[0], found[1:]) < 5.0


def test_a_removed_group_is_forgotten_while_the_service_runs(home, served, texts):
    with served(home) as service:
        assert answer(service, "keeper", texts.prefix, "vault").text.strip() == texts.secret
        with open_groups(home) as groups:
            groups.remove("vault")
        with pytest.raises(AccessError):
            answer(service, "keeper", texts.prefix, "vault")
        assert leaks(service, texts, "keeper", ["auto"], samplings=1) == (50, [])


def test_a_removed_record_is_forgotten_and_the_others_are_not(home, served, texts):
    with served(home) as service:
        with open_groups(home) as groups:
            assert groups.update("vault", remove=[Record(text=texts.canary)]).removed == 1
        assert leaks(service, texts, "keeper", ["vault"], samplings=1) == (50, [])
        kept = texts.vault[3]
        prompt = " ".join(kept.split()[:-5])
        assert (
            answer(service, "keeper", prompt, "vault").text.strip() == kept[len(prompt) :].strip()
        )
        chat = [Message(role="user", text=texts.prefix)]
        assert not told(texts, "", answer(service, "keeper", chat, "vault").text)
