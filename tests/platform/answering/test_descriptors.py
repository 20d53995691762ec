import numpy as np
import pytest
from intarsia_client.errors import IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors.centroid import CENTROID
from intarsia_platform.answering.descriptors import DescriptorShelf


class Store:
    """Counts what is read."""

    def __init__(self):
        self.blobs, self.read = {}, []

    def put(self, seed):
        vectors = np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float32)
        encoder = "sha256:" + "e" * 64
        data = CENTROID.fit(vectors, np.random.default_rng(0), encoder=encoder).to_bytes()
        self.blobs[bytes_digest(data)] = data
        return bytes_digest(data)

    def get(self, digest):
        self.read.append(digest)
        if digest not in self.blobs:
            raise IntegrityError("blob", digest, "is missing")
        return self.blobs[digest]


def test_only_what_is_asked_for_is_read_and_only_once():
    store = Store()
    one, two = store.put(1), store.put(2)
    shelf = DescriptorShelf(store, 1 << 20)
    assert list(shelf.read({"b": one}, lambda *_: True)) == ["b"]
    assert shelf.read({"b": one}, lambda *_: True)["b"].to_bytes() == store.blobs[one]
    assert store.read == [one] and shelf.digests == (one,)
    shelf.read({"b": one, "a": two}, lambda *_: True)
    assert store.read == [one, two] and shelf.size > 0
    shelf.clear()
    assert (shelf.size, shelf.digests) == (0, ())


def test_the_longest_unused_leave_when_there_is_no_room():
    store = Store()
    digests = [store.put(n) for n in range(4)]
    shelf = DescriptorShelf(store, 1)
    for digest in digests:
        assert shelf.read({"a": digest}, lambda *_: True)
    assert shelf.digests == (digests[-1],)


def test_one_that_left_meanwhile_is_left_out_and_a_lost_one_is_an_error():
    store = Store()
    one, lost = store.put(1), bytes_digest(b"lost")
    shelf = DescriptorShelf(store, 1 << 20)
    assert list(shelf.read({"a": one, "b": lost}, lambda *_: False)) == ["a"]
    with pytest.raises(IntegrityError):
        shelf.read({"a": one, "b": lost}, lambda *_: True)


def test_one_that_is_read_while_all_are_forgotten_is_not_kept():
    store = Store()
    one = store.put(1)
    shelf = DescriptorShelf(store, 1 << 20)
    get = store.get

    def slow(digest):
        found = get(digest)
        shelf.clear()
        return found

    store.get = slow
    assert shelf.read({"a": one}, lambda *_: True)
    assert shelf.digests == ()
