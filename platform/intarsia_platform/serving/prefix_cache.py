"""Keys and values of prompts' beginnings, kept after their requests have ended.

Who asks again with the same beginning (a system prompt, a conversation so far) gets them copied
and not computed. Nobody else does: the unit of sharing is the principal. After a proposal to salt
such caches against timing leaks (vLLM, CVE-2025-46570), with the content of the adapters, not
their names, in the key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from intarsia_platform.access.ticket import Ticket
from intarsia_platform.serving.capacities import PREFIX_BYTES
from intarsia_platform.serving.mixture import MixtureKey
from intarsia_platform.serving.prompt_pieces import borders

ROUTER = "request"
"""How adapters are chosen where no router divides tokens among them: once for a request, before the
engine. Each other way has a name of its own, since keys and values depend on it."""

_DOMAIN = b"intarsia prefix 2"


@dataclass(frozen=True, kw_only=True)
class PrefixScope:
    """What keys and values depend on beside the tokens, and who may have them again.

    Args:
        salt: The principal's, of this cache.
        base: Digest of the base model.
        mixture: Content digests of the adapters and their weights, sorted.
        allowed: Digest of everything that the ticket grants, so that no entry outlives a change
            of the allowed set, however adapters were chosen from it.
        router: How adapters were chosen.
    """

    salt: bytes
    base: str
    mixture: MixtureKey
    allowed: str
    router: str = ROUTER


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """The beginnings of one request's prompt.

    Args:
        keys: From a border of the prompt to the key of all tokens before it, ascending; empty
            where nothing is kept.
        drops: How many drops there had been when the request came.
    """

    keys: Mapping[int, bytes]
    drops: int

    def until(self, end: int) -> list[bytes]:
        """The keys up to a border, ascending."""
        return [key for border, key in self.keys.items() if border <= end]


@dataclass(frozen=True, kw_only=True)
class PrefixFigures:
    """What a cache did.

    Args:
        hits: Whole pieces of prompts that were copied.
        misses: Whole pieces that were looked for and had to be computed.
        bytes: Memory in use.
    """

    hits: int
    misses: int
    bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Entry:
    adapters: frozenset[str]
    tensors: tuple[Tensor, ...]
    size: int


class PrefixCache:
    """The kept beginnings of one engine. Safe for several threads.

    One thread, the engine's, looks, keeps and reads the epoch; any other may drop.

    Formal guarantee: a request is only ever given what was computed for the same principal, base,
    adapters by content, weights, allowed set, router and tokens, under the epoch that was last
    read, unless SHA-256 has a collision. Once :meth:`drop` has returned, nothing that the adapter
    was part of is kept, and no request that came before it has anything kept. Memory in use never
    exceeds the capacity, and what leaves is overwritten with zeros first.

    Args:
        base: Digest of the base model.
        capacity_bytes: Most memory; 0 keeps nothing. What was not used for longest leaves first,
            and of one prompt the later pieces before the earlier ones.
    """

    def __init__(self, base: str, capacity_bytes: int = PREFIX_BYTES) -> None:
        """Keep nothing yet."""
        self._base = base
        self._capacity = capacity_bytes
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._size = self._hits = self._misses = 0
        self._epoch: int | None = None
        # A request that holds an adapter still while it is dropped must not bring it back.
        self._drops = 0

    @property
    def figures(self) -> PrefixFigures:
        """What it did, and its size."""
        with self._lock:
            return PrefixFigures(hits=self._hits, misses=self._misses, bytes=self._size)

    def beginnings(
        self, ticket: Ticket, mixture: MixtureKey, prompt: Sequence[int], routing: str = ""
    ) -> Beginnings:
        """The beginnings of a prompt; to be asked for before its adapters are.

        Args:
            ticket: The caller's.
            mixture: Digests and weights of the adapters, sorted.
            prompt: All tokens.
            routing: Which router divides tokens among them; empty for none.

        Returns:
            Their keys.
        """
        with self._lock:
            drops = self._drops
        if not self._capacity:
            return Beginnings(keys={}, drops=drops)
        scope = PrefixScope(
            salt=hmac.digest(self._secret, ticket.principal.encode(), "sha256"),
            base=self._base,
            mixture=mixture,
            allowed=ticket.allowed_digest,
            router=routing or ROUTER,
        )
        return Beginnings(keys=prefix_keys(scope, prompt), drops=drops)

    def epoch(self, read: Callable[[], int]) -> int:
        """Read the epoch; if it has moved, or cannot be read, everything kept is gone.

        Args:
            read: Gives it.

        Returns:
            It.
        """
        try:
            epoch = read()
        except BaseException:
            self.clear()
            raise
        with self._lock:
            if epoch != self._epoch:
                self._forget(list(self._entries))
            self._epoch = epoch
        return epoch

    def take(self, prompt: Beginnings, end: int, write: Callable[[Sequence[Tensor]], None]) -> bool:
        """Have a piece's keys and values copied, if they are kept.

        Args:
            prompt: The prompt's beginnings.
            end: Where the piece ends.
            write: Copies them before it returns.

        Returns:
            Whether they are kept; False where the piece is not whole.
        """
        if end not in prompt.keys:
            return False
        with self._lock:
            entry = self._entries.get(prompt.keys[end])
            if entry is None:
                self._misses += 1
                return False
            write(entry.tensors)
            self._hits += 1
            self._use(prompt.until(end))
            return True

    def keep(
        self,
        prompt: Beginnings,
        end: int,
        adapters: Iterable[str],
        size: int,
        read: Callable[[], Sequence[Tensor]],
    ) -> None:
        """Keep a piece that was computed since the epoch was last read.

        Args:
            prompt: The prompt's beginnings.
            end: Where the piece ends; one that is not whole is not kept.
            adapters: Digests of what it was computed with.
            size: Bytes that it takes.
            read: Gives copies of its keys and values.
        """
        if end not in prompt.keys:
            return
        chain = prompt.until(end)
        with self._lock:
            if self._drops != prompt.drops:
                return
            self._use(chain)
            if chain[-1] in self._entries or not self._make_room(size, chain):
                return
            entry = _Entry(adapters=frozenset(adapters), tensors=tuple(read()), size=size)
            self._entries[chain[-1]] = entry
            self._size += size
            self._use(chain)

    def drop(self, adapter: str) -> None:
        """Forget all that an adapter was part of; for :meth:`AdapterBank.on_drop`.

        Args:
            adapter: Its digest.
        """
        with self._lock:
            self._drops += 1
            self._forget([key for key, one in self._entries.items() if adapter in one.adapters])

    def clear(self) -> None:
        """Forget everything; no request that came before has anything kept."""
        with self._lock:
            self._drops += 1
            self._forget(list(self._entries))

    def _use(self, chain: Sequence[bytes]) -> None:
        """Make these the last to leave, the first of them last: later pieces need it."""
        for key in reversed(chain):
            if key in self._entries:
                self._entries.move_to_end(key)

    def _make_room(self, size: int, chain: Sequence[bytes]) -> bool:
        while self._size + size > self._capacity:
            oldest = next(iter(self._entries), None)
            if oldest is None or oldest in chain:
                return False
            self._forget([oldest])
        return True

    def _forget(self, keys: Sequence[bytes]) -> None:
        with torch.no_grad():
            for key in keys:
                entry = self._entries.pop(key)
                self._size -= entry.size
                for tensor in entry.tensors:
                    tensor.zero_()


def prefix_keys(scope: PrefixScope, tokens: Sequence[int]) -> dict[int, bytes]:
    """The keys of a prompt's beginnings: SHA-256 over an injective encoding.

    A tag of the domain, then every field with its length before it, then each piece of tokens with
    its length before it.

    Args:
        scope: What they depend on beside the tokens.
        tokens: The prompt.

    Returns:
        From a border to the key of all tokens before it, ascending.
    """
    digest = hashlib.sha256()
    for part in _parts(scope):
        digest.update(len(part).to_bytes(8, "big") + part)
    keys, begin = {}, 0
    for end in borders(len(tokens)):
        piece = np.asarray(tokens[begin:end], dtype=">i8").tobytes()
        digest.update(len(piece).to_bytes(8, "big") + piece)
        keys[end], begin = digest.digest(), end
    return keys


def _parts(scope: PrefixScope) -> Iterator[bytes]:
    yield _DOMAIN
    yield scope.salt
    yield scope.base.encode()
    yield str(len(scope.mixture)).encode()
    for adapter, weight in scope.mixture:
        yield adapter.encode()
        yield struct.pack(">d", weight)
    yield scope.allowed.encode()
    yield scope.router.encode()
