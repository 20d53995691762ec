"""Facts as the registry has them."""

from datetime import UTC, datetime

from intarsia_platform.access.facts import AdapterFacts, AdapterFactsReader


def test_an_adapter_without_rights_has_the_least(database, add_adapter):
    digest = add_adapter("plain", "b", "a")
    found = AdapterFactsReader(database).of(digest)
    assert found == AdapterFacts(digest=digest, name="plain", labels=("a", "b"))
    assert (found.owner, found.tenant, found.level, found.expires_at) == ("", "", 0, None)


def test_rights_are_read_beside_it(database, add_adapter):
    moment = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    digest = add_adapter("f", "x", owner="ann", tenant="acme", level=3, expires_at=moment)
    add_adapter("plain")
    reader = AdapterFactsReader(database)
    assert reader.of(digest) == AdapterFacts(
        digest=digest, name="f", labels=("x",), owner="ann", tenant="acme", level=3,
        expires_at=moment,
    )  # fmt: skip
    assert [one.digest for one in reader.all()] == sorted(one.digest for one in reader.all())
    assert {one.name for one in reader.all()} == {"f", "plain"}


def test_what_is_not_registered_has_none(database):
    reader = AdapterFactsReader(database)
    assert reader.all() == () and reader.of("sha256:0") is None


def test_the_last_moment_is_over():
    moment = datetime(2031, 1, 1, tzinfo=UTC)
    facts = AdapterFacts(digest="d", name="n", expires_at=moment)
    assert facts.expired(moment) and not facts.expired(moment.replace(year=2030))
