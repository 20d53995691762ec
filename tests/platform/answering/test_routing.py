"""A service whose retrieved adapters are divided token by token."""

from __future__ import annotations

import pytest
from intarsia_client.errors import InputError
from intarsia_continual.layerwise import ROUTERS
from intarsia_platform.answering.service import open_service
from intarsia_platform.answering.settings import ROUTINGS, RetrievalSettings
from intarsia_platform.answering.use import AUTO, parse_use
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.serving.sampling import Sampling

GREEDY = Sampling(max_tokens=10)
USES = ("auto", "base", "sea", "sea=1,farm=3")


def routed(routing, **changes):
    return RetrievalSettings(
        **{"threshold": None, "temperature": 30.0, "routing": routing, "top_k": 16, **changes}
    )


def view(service, texts, own_records, principal="ann"):
    """What a principal gets for some prompts, and the losses of some records."""
    found = {}
    for use in USES:
        for name, text in texts.items():
            ticket = service.authorize(principal)
            prompt = text.format(n=30)[:40]
            found[use, name] = service.answer(ticket, prompt, parse_use(use), GREEDY)
        records = [*own_records("sea", 2), *own_records("vault", 2)]
        found[use] = service.score(service.authorize(principal), records, parse_use(use))
    return found


@pytest.mark.parametrize("routing", ["arrow", "lag"])
def test_it_is_retrievals_alone_and_sees_nothing_hidden(
    copy, settings, texts, own_records, routing
):
    home = copy("home")
    with open_service(home, settings=settings()) as service:
        plain = view(service, texts, own_records)
    router = settings(retrieval=routed(routing))
    with open_service(home, settings=router) as service:
        found = view(service, texts, own_records)
        # More than two are judged together: "all" may never have farm and space in one answer.
        ticket = service.authorize("all")
        names = {
            ticket.adapter(one.digest).name
            for one in service.choose(ticket, texts["farm"].format(n=3), AUTO)
        }
        assert {"farm", "sea", "vault"} == names
    for name in texts:
        used = found["auto", name].used
        assert sorted((one.name, one.weight) for one in used) == [("farm", 0.5), ("sea", 0.5)]
    assert {key: one for key, one in found.items() if "auto" not in key} == {
        key: one for key, one in plain.items() if "auto" not in key
    }
    assert found["auto"].perplexity != pytest.approx(plain["auto"].perplexity, rel=1e-6)
    # Two good adapters, divided or mixed, are better than none.
    assert found["auto"].perplexity < plain["base"].perplexity
    alone = copy("alone")
    with open_groups(alone) as groups:
        groups.remove("space")
        groups.remove("vault")
    with open_service(alone, settings=router) as service:
        assert view(service, texts, own_records) == found


def test_the_routers_are_those_that_there_are_and_no_other_is_taken():
    assert ("request", *ROUTERS) == ROUTINGS
    with pytest.raises(InputError, match="routing: spectral; choose one of request, arrow, lag"):
        routed("spectral")
