"""The service on real groups: what is answered, with what, for whom, and what is kept of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import AccessError, InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.answering.service import open_service
from intarsia_platform.answering.use import AUTO, BASE, parse_use
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.engine import EngineBusy
from intarsia_platform.serving.sampling import Sampling
from intarsia_platform.serving.streams import Finish

SHORT = Sampling(max_tokens=6)


def ask(service, use, *, principal="ann", prompt="The captain", sampling=SHORT):
    return service.answer(service.authorize(principal), prompt, parse_use(use), sampling)


def events(service):
    return [dict(entry.event) for entry in AuditLog(service.database).entries()]


def test_what_is_used_is_what_was_asked_for(service):
    found = ask(service, "farm,sea=3")
    assert [(used.name, used.weight) for used in sorted(found.used, key=lambda one: one.name)] == [
        ("farm", 0.25), ("sea", 0.75)
    ]  # fmt: skip
    assert (found.labels, found.tokens, found.finish) == (("farm", "sea"), 6, Finish.LENGTH)
    assert found.prompt_tokens == service.count_tokens("The captain") > 2
    base = ask(service, "base")
    assert (base.used, base.labels) == ((), ()) and base.text != found.text
    assert list(found.as_mapping()) == ["text", "used", "labels", "tokens"]
    assert set(found.as_mapping()["used"][0]) == {"adapter", "name", "weight"}


def test_retrieval_finds_the_group_whose_text_it_is(home, settings, texts):
    from intarsia_platform.answering.settings import RetrievalSettings

    with open_service(home, settings=settings(retrieval=RetrievalSettings(top_k=1))) as service:
        ticket = service.authorize("all")
        names = {
            name: [ticket.adapter(choice.digest).name for choice in service.choose(
                ticket, text.format(n=5), AUTO)]
            for name, text in texts.items()
        }  # fmt: skip
        assert names == {name: [name] for name in texts}
        assert service.choose(ticket, "0101 0101 %%%", AUTO) == ()
        assert service.choose(service.authorize("nobody"), texts["sea"], AUTO) == ()


def test_models_are_those_that_may_be_used_and_can_be_served(service, home, saved_elsewhere):
    registry = AdapterRegistry(service.database, ContentStore(home.store_url))
    registry.import_directory(saved_elsewhere, name="afar", labels=["sea"])
    entries = service.models(service.authorize("ann"))
    assert [entry.id for entry in entries] == ["auto", "base", "farm", "sea"]
    assert entries[2].labels == ("farm",) and entries[0].labels == ()
    assert [entry.id for entry in service.models(service.authorize("nobody"))] == ["auto", "base"]
    with pytest.raises(InputError, match="adapter afar: is not served here"):
        ask(service, "afar")
    with pytest.raises(AccessError):
        ask(service, "afar", principal="bob")


@pytest.fixture
def saved_elsewhere(tmp_path):
    """An adapter that PEFT saved, of another base, that nobody admitted."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                       num_attention_heads=2)  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(tiny), LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "afar")
    return tmp_path / "afar"


def test_what_may_not_be_mixed_is_refused_and_never_retrieved(service, texts):
    with pytest.raises(AccessError, match="is not one that you may use"):
        ask(service, "farm,space", principal="bob")
    assert ask(service, "farm", principal="bob").used
    ticket = service.authorize("bob")
    chosen = service.choose(ticket, texts["farm"] + texts["space"], AUTO)
    assert len(chosen) == 1 and chosen[0].weight == 1.0


def test_three_that_only_together_may_not_be_mixed_never_are(service, home, put_policies, texts):
    words = " ".join(texts[name] for name in ("sea", "farm", "vault"))
    assert len(service.choose(service.authorize("all"), words, AUTO)) == 3
    put_policies(
        home,
        """
        permit(principal, action, resource);
        forbid(principal, action, resource)
        when { context.labels.containsAll(["sea", "farm", "vault"]) };
    """,
    )
    ticket = service.authorize("all")
    assert not ticket.apart
    for prompt in (words, texts["vault"]):
        chosen = {ticket.adapter(one.digest).name for one in service.choose(ticket, prompt, AUTO)}
        assert chosen and not chosen >= {"sea", "farm", "vault"}
    with pytest.raises(AccessError, match="adapter vault: is not one that you may use"):
        ask(service, "sea,farm,vault", principal="all")
    assert len(ask(service, "sea,vault", principal="all").used) == 2


def test_scores_are_those_of_evaluation_with_the_adapter(service, home, own_records, stories):
    records = [*own_records("sea", 3), Record(text="A cat sat on a mat.")]
    base = load_base(stories, task="causal-lm")
    registry = AdapterRegistry(service.database, ContentStore(home.store_url))
    for use, adapter in (("base", None), ("sea", registry.load("sea"))):
        scores = service.score(service.authorize("ann"), records, parse_use(use))
        whole = evaluate(base, records, adapter=adapter, max_length=512)
        assert scores.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
        assert sum(one.tokens for one in scores.records) == whole.tokens
        for one, record in zip(scores.records, records, strict=True):
            alone = evaluate(base, [record], adapter=adapter, max_length=512)
            assert one.loss == pytest.approx(alone.loss, rel=1e-5)
    assert scores.accuracy is None
    assert list(scores.as_mapping()) == ["perplexity", "accuracy", "records"]
    shown = scores.as_mapping()["records"][0]
    assert shown["used"][0]["name"] == "sea" and set(shown) == {"loss", "tokens", "used"}


def test_a_ticket_is_good_for_one_answer(service, own_records):
    ticket = service.authorize("ann")
    assert service.models(ticket) and service.choose(ticket, "x", AUTO)
    assert service.answer(ticket, "x", BASE, SHORT).text
    for again in (
        lambda: service.answer(ticket, "x", BASE, SHORT),
        lambda: service.score(ticket, own_records("sea", 1), BASE),
    ):
        with pytest.raises(AccessError):
            again()


def test_what_others_hold_is_not_told_to_whom_there_is_no_room_for(home, settings):
    with open_service(home, settings=settings()) as small:
        size = ask(small, "sea").used and small._machine.bank.size
    with open_service(home, settings=settings(bank_bytes=size)) as small:
        started = small.start(
            small.authorize("bob"), "Once", parse_use("farm"), Sampling(max_tokens=90)
        )
        with started.stream as stream:
            stream.get(10)
            with pytest.raises(EngineBusy, match="adapters: have no room now"):
                ask(small, "sea")
        stream.read()
        assert ask(small, "sea").tokens == 6


def test_a_forged_ticket_gets_nothing(service):
    more = service.authorize("all").adapters
    forged = dataclasses.replace(service.authorize("ann"), adapters=more)
    for call in (
        lambda: service.models(forged),
        lambda: service.choose(forged, "x", AUTO),
        lambda: service.answer(forged, "x", BASE, SHORT),
        lambda: service.answer(forged, "x", parse_use("vault"), SHORT),
    ):
        with pytest.raises(AccessError, match="ticket"):
            call()


def test_an_answer_ends_when_a_right_goes(service, put_policies, home):
    started = service.start(
        service.authorize("ann"), "Once", parse_use("sea"), Sampling(max_tokens=90)
    )
    first = started.stream.get(10)
    put_policies(home, users=[{
        "uid": {"type": "User", "id": "ann"}, "parents": [],
        "attrs": {"groups": ["farm"], "clearance": 1, "tenant": "acme"},
    }])  # fmt: skip
    rest = started.stream.read()
    assert first.finish is None and rest.finish is Finish.REVOKED and len(rest.tokens) < 90
    assert events(service)[-1]["finish"] == "revoked"


def test_a_key_that_is_revoked_ends_the_answer(service):
    key, _ = ApiKeys(service.database).create("ann")
    ticket = service.authorize("ann", credential=key)
    started = service.start(ticket, "Once", BASE, Sampling(max_tokens=90))
    started.stream.get(10)
    ApiKeys(service.database).revoke(key)
    assert started.stream.read().finish is Finish.REVOKED


def test_groups_come_change_and_go_without_a_restart(service, home, new, own_records):
    before = ask(service, "sea")
    digest = before.used[0].digest
    with open_groups(home) as groups:
        groups.add(new("lake", own_records("sea", 5), labels=["sea"]))
        assert ask(service, "lake").used[0].name == "lake"
        groups.update("sea", add=own_records("farm", 2))
        after = ask(service, "sea")
        assert after.used[0].digest != digest
        assert digest not in service._machine.bank.digests
        assert {used.name for used in ask(service, "auto").used} <= {"sea", "lake", "farm"}
        groups.remove("sea")
        with pytest.raises(AccessError):
            ask(service, "sea")
        assert after.used[0].digest not in service._machine.bank.digests
        described = set(service._machine.descriptors.digests)
        ask(service, "auto")
        assert described.isdisjoint({after.used[0].digest})
        # Equal records give an equal adapter, which may be used again.
        groups.add(new("sea"))
        assert ask(service, "sea") == before


def test_the_epoch_has_risen_before_an_adapter_leaves_the_bank(service, home, new, own_records):
    bank, seen = service._machine.bank, []
    used = {name: ask(service, name, principal="all").used[0].digest for name in ("sea", "vault")}
    before = service._authorizer.epoch()
    # Told by the bank itself while it drops one.
    bank.on_drop(lambda digest: seen.append((digest, service._authorizer.epoch())))
    with open_groups(home) as groups:
        groups.update("sea", add=own_records("farm", 2))
        groups.remove("vault")
    assert seen == [] and set(used.values()) <= set(bank.digests)
    service.forget_departed()
    assert {digest for digest, _ in seen} == set(used.values())
    assert all(epoch > before for _, epoch in seen)
    assert not set(used.values()) & set(bank.digests)


def test_resting_gives_back_copies_and_changes_no_answer(service):
    before = ask(service, "farm,sea")
    assert service._machine._served.copied_bytes > 0
    service.rest()
    assert service._machine._served.copied_bytes == 0
    assert ask(service, "farm,sea") == before


def test_removed_descriptors_leave_memory(service, home):
    ask(service, "auto", principal="all")
    kept = service._machine.descriptors
    with open_groups(home) as groups:
        gone = groups.groups.get("vault").descriptor_digest
        assert gone in kept.digests
        groups.remove("vault")
    ask(service, "auto")
    assert kept.digests and gone not in kept.digests


def test_the_log_says_what_was_done_and_nothing_that_was_said(service, own_records):
    prompt = "The captain whispers marzipan"
    answer = ask(service, "farm=1,sea=2", prompt=prompt)
    with pytest.raises(AccessError):
        ask(service, "vault", prompt=prompt)
    with pytest.raises(AccessError):
        service.authorize("eve")
    service.score(service.authorize("ann"), own_records("sea", 2), AUTO)
    policy, answered, refused, unknown, scored = events(service)
    assert policy["action"] == "policy-set"
    assert {name: answered[name] for name in ("action", "principal", "decision", "finish")} == {
        "action": "answer", "principal": "ann", "decision": "allow", "finish": "length",
    }  # fmt: skip
    assert answered["tokens"] == answer.tokens and answered["labels"] == ["farm", "sea"]
    assert [one["weight"] for one in answered["used"]] in ([0.3125, 0.6875], [0.6875, 0.3125])
    assert answered["allowed_digest"].startswith("sha256:") and answered["ticket"]
    assert (refused["decision"], refused["model"]) == ("refuse", "vault")
    assert (unknown["action"], unknown["decision"]) == ("authorize", "refuse")
    assert (scored["action"], scored["number"]) == ("score", 2) and len(scored["adapters"]) == 2
    assert AuditLog(service.database).verify() == 5
    whole = json.dumps(events(service))
    assert "marzipan" not in whole and answer.text.strip() not in whole


def test_without_policies_only_the_base_may_be_used(new, tmp_path, settings):
    from intarsia_platform.home import Home

    home = Home.open(tmp_path / "bare")
    with open_groups(home) as groups:
        groups.add(new("sea"))
    with open_service(home, settings=settings(alone=True)) as service:
        assert not service.policies_set
        assert ask(service, "auto", principal="anybody").used == ()
        assert [entry.id for entry in service.models(service.authorize("anybody"))] == [
            "auto", "base"
        ]  # fmt: skip
        with pytest.raises(AccessError):
            ask(service, "sea", principal="anybody")


def test_embeddings_are_the_bases_and_each_texts_own(service):
    together = service.embed(["one ship", "two cows and a barn", ""])
    assert together.shape == (3, service.base.model.config.hidden_size)
    for row, text in zip(together, ["one ship", "two cows and a barn", ""], strict=True):
        assert (service.embed([text])[0] == row).all()
        assert float((row**2).sum()) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_that_is_left_is_cancelled_and_written(service):
    started = service.start(service.authorize("ann"), "Once", BASE, Sampling(max_tokens=90))
    with started.stream as stream:
        stream.get(10)
    assert stream.read().finish is Finish.CANCELLED
    assert events(service)[-1]["finish"] == "cancelled"


def test_closing_ends_answers_writes_them_and_leaves_the_base(home, settings):
    with open_service(home, settings=settings()) as service:
        started = service.start(service.authorize("ann"), "Once", BASE, Sampling(max_tokens=90))
        started.stream.get(10)
    assert started.stream.read().finish is Finish.CANCELLED
    with pytest.raises(EngineBusy):
        service.prepare()
    with open_database(home.database_url) as database:
        assert AuditLog(database).entries()[-1].event["finish"] == "cancelled"
    assert not any(module._forward_hooks for module in service.base.model.modules())


def test_one_at_a_time_gives_the_same_greedy_answer(home, settings):
    found = []
    for alone in (False, True):
        with open_service(home, settings=settings(alone=alone)) as service:
            found.append(ask(service, "sea"))
    assert found[0] == found[1]


def test_an_epoch_that_moves_for_others_leaves_a_ticket_standing(service):
    ticket = service.authorize("ann")
    with service.database.begin() as connection:
        bump(connection)
    assert service.answer(ticket, "Once", parse_use("sea"), SHORT).finish is Finish.LENGTH


def test_a_stranger_is_refused_before_a_base_is_loaded(home):
    with pytest.raises(AccessError, match="principal eve"), open_service(home, principal="eve"):
        pass
    with open_database(home.database_url) as database:
        assert AuditLog(database).entries()[-1].event["principal"] == "eve"
