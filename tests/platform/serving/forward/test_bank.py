from __future__ import annotations

import threading
from collections import Counter

import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_platform.access.refusal import refused
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.requests import EngineBusy


class Counted:
    """Reads, and counts what was read."""

    def __init__(self, bench):
        self.bench, self.reads = bench, Counter()

    def __call__(self, digest):
        self.reads[digest] += 1
        return self.bench.encoded[digest]


@pytest.fixture
def read(benches):
    return Counted(benches["llama"])


@pytest.fixture
def make_bank(benches, read):
    size = max(adapter.size for adapter in benches["llama"].banked)

    def make(adapters=10):
        return AdapterBank(benches["llama"].base, read, capacity_bytes=adapters * size)

    return make


def test_an_adapter_is_read_when_it_is_wanted_and_once(benches, read, make_bank):
    bank, digests = make_bank(), benches["llama"].digests
    assert (bank.size, bank.digests, read.reads) == (0, (), {})
    for _ in range(3):
        with bank.lease(digests[:2]) as adapters:
            assert [one.digest for one in adapters] == digests[:2]
            assert bank.size == sum(one.size for one in adapters)
    assert read.reads == dict.fromkeys(digests[:2], 1)
    assert bank.digests == tuple(digests[:2])


def test_the_longest_unused_leaves_first(benches, read, make_bank):
    bank, (a, b, c, _) = make_bank(2), benches["llama"].digests
    for digest in (a, b, a, c):
        bank.lease([digest]).close()
    assert bank.digests == (a, c)
    bank.lease([b]).close()
    assert bank.digests == (c, b)
    assert read.reads == {a: 1, b: 2, c: 1}


def test_what_is_leased_stays(benches, read, make_bank):
    bank, (a, b, c, _) = make_bank(2), benches["llama"].digests
    held = bank.lease([a])
    for digest in (b, c, b, c):
        bank.lease([digest]).close()
    assert a in bank.digests
    assert read.reads[a] == 1
    assert held.adapters[0].a
    held.close()
    held.close()
    for digest in (b, c):
        bank.lease([digest]).close()
    assert bank.digests == (b, c)


def test_more_leases_than_memory_are_refused_and_leave_nothing(benches, make_bank):
    bank, digests = make_bank(2), benches["llama"].digests
    with bank.lease(digests[:2]):
        before = bank.size
        with pytest.raises(EngineBusy, match="adapters: have no room now; try again"):
            bank.lease(digests[1:3])
        assert bank.size == before
        assert set(bank.digests) == set(digests[:2])
    # And the leases that failed hold nothing back.
    bank.lease(digests[2:4]).close()
    assert bank.digests == tuple(digests[2:4])


def test_what_others_hold_is_in_the_log_and_not_in_the_words(benches, make_bank, caplog):
    bank, digests = make_bank(3), benches["llama"].digests
    words = []
    for others in (digests[:2], digests[:3]):
        with bank.lease(others), pytest.raises(EngineBusy) as caught:
            bank.lease(digests[2:4])
        words.append(str(caught.value))
    assert words[0] == words[1] and not any(character.isdigit() for character in words[0])
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2 and all("bytes leased" in line for line in logged)


def test_what_would_not_fit_alone_is_refused_whatever_others_hold(benches, make_bank):
    bank, digests = make_bank(2), benches["llama"].digests
    words = []
    for others in ([], digests[:1], digests[1:2]):
        with bank.lease(others), pytest.raises(InputError, match="do not fit") as caught:
            bank.lease(digests)
        words.append(str(caught.value))
    assert len(set(words)) == 1
    assert bank.size <= 2 * max(one.size for one in benches["llama"].banked)


def test_dropped_is_refused_like_unknown(benches, read, make_bank):
    bank, digest = make_bank(), benches["llama"].digests[0]
    told = []
    bank.on_drop(told.append)
    bank.lease([digest]).close()
    bank.drop(digest)
    assert (bank.size, bank.digests, told) == (0, (), [digest])
    with pytest.raises(AccessError) as caught:
        bank.lease([digest])
    assert str(caught.value) == str(refused("adapter", digest))
    assert read.reads == {digest: 1}
    bank.restore(digest)
    with bank.lease([digest]) as adapters:
        assert adapters[0].digest == digest


def test_a_dropped_adapter_goes_with_its_last_lease(benches, make_bank):
    bank, digest = make_bank(), benches["llama"].digests[0]
    first, second = bank.lease([digest]), bank.lease([digest])
    size = bank.size
    bank.drop(digest)
    assert (bank.digests, bank.size) == ((), size)
    first.close()
    assert bank.size == size
    assert second.adapters[0].a
    second.close()
    assert (second.adapters, bank.size) == ((), 0)


def test_a_restored_adapter_is_read_anew(benches, read, make_bank):
    bank, digest = make_bank(), benches["llama"].digests[0]
    old = bank.lease([digest])
    bank.drop(digest)
    bank.restore(digest)
    with bank.lease([digest]) as adapters:
        assert adapters[0] is not old.adapters[0]
        assert bank.size == 2 * adapters[0].size
        old.close()
        assert bank.size == adapters[0].size
    assert read.reads[digest] == 2


def test_dropped_while_it_is_read(benches, read):
    bench = benches["llama"]
    digest = bench.digests[0]

    def read_and_drop(name):
        bank.drop(name)
        return read(name)

    bank = AdapterBank(bench.base, read_and_drop)
    with pytest.raises(AccessError):
        bank.lease([digest])
    assert (bank.size, bank.digests) == (0, ())


def test_an_adapter_that_cannot_be_read_leaves_nothing(benches):
    bench = benches["llama"]
    good, bad = bench.digests[:2]

    def read(digest):
        if digest == bad:
            raise OSError("gone")
        return bench.encoded[digest]

    bank = AdapterBank(bench.base, read)
    with pytest.raises(OSError, match="gone"):
        bank.lease([good, bad])
    assert bank.digests == (good,)
    bank.drop(good)
    assert bank.size == 0


def test_threads_read_an_adapter_once_and_account_for_all(benches, make_bank, read):
    bank, digests = make_bank(3), benches["llama"].digests
    start = threading.Barrier(6)
    errors = []

    def work(index):
        start.wait()
        for turn in range(30):
            try:
                with bank.lease([digests[(index + turn) % 4]]) as adapters:
                    assert adapters[0].digest == digests[(index + turn) % 4]
            except EngineBusy:
                pass  # six leases of four adapters may be more than three fit
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    sizes = {one.digest: one.size for one in benches["llama"].banked}
    assert bank.size == sum(sizes[digest] for digest in bank.digests)
    for digest in digests:
        bank.drop(digest)
    assert bank.size == 0


def test_one_reader_for_many_that_wait(benches):
    bench = benches["llama"]
    entered, go = threading.Event(), threading.Event()
    reads = []

    def read(digest):
        reads.append(digest)
        entered.set()
        assert go.wait(20)
        return bench.encoded[digest]

    bank = AdapterBank(bench.base, read)
    threads = [
        threading.Thread(target=lambda: bank.lease(bench.digests[:1]).close()) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(20)
    go.set()
    for thread in threads:
        thread.join()
    assert reads == bench.digests[:1]
