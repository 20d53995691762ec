"""Bearer tokens of an OpenID Connect issuer, verified against its published keys.

Signature, issuer, audience and times are verified with PyJWT (RFC 7519, RFC 8725). What a token may
be signed with follows from the key, never from the token: RS256, ES256 and EdDSA; a symmetric key
in the set is not used, and ``none`` is no algorithm here.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from intarsia_client.errors import InputError, StorageError

from intarsia_platform.access.caller import Caller
from intarsia_platform.access.entities import is_word
from intarsia_platform.access.refusal import not_authenticated

ALGORITHMS = ("RS256", "ES256", "EdDSA")

MAX_TOKEN = 16 * 1024
MAX_KEYS_BYTES = 1 << 20
LEEWAY_SECONDS = 30
KEEP_SECONDS = 300
RETRY_SECONDS = 30
_TIMEOUT_SECONDS = 10
# Later than any ticket ends, and still a number of seconds.
_FAR = 1 << 50
_RSA_BITS = 2048
_LOCAL = ("localhost", "127.0.0.1", "::1")


class BearerTokens:
    """Verifies the tokens of one issuer; safe to share between threads.

    The key set is read when it is first needed, and again after five minutes, or when a token names
    a key that is not in it, at most once in thirty seconds. While it cannot be read again, the keys
    that were read last stay in use.

    Args:
        jwks: A file, or the https URL of a JSON Web Key Set (http only on this machine).
        issuer: Who must have issued a token.
        audience: For whom it must have been issued.
        principal_claim: The claim that names the principal.
        clock: Seconds that only rise, for the age of the keys.
        now: Seconds since 1970, for the end of tokens.

    Raises:
        InputError: If an argument is empty, or the URL is of another kind.
    """

    def __init__(
        self,
        jwks: Path | str,
        issuer: str,
        audience: str,
        principal_claim: str = "sub",
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Keep the arguments; nothing is read yet."""
        if not (issuer and audience and principal_claim):
            raise InputError("bearer tokens", "issuer, audience or claim is empty", "give all")
        self._place = _checked_place(jwks)
        self._issuer = issuer
        self._audience = audience
        self._claim = principal_claim
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._keys: Mapping[str | None, jwt.PyJWK] = {}
        self._tried_at: float | None = None
        self._read_at: float | None = None

    def verify(self, token: str) -> Caller:
        """Find out for whom a token stands.

        Args:
            token: What the caller presented, without ``Bearer``.

        Returns:
            The principal, and when the token ends: what it began ends then, too, so that a clock
            that goes wrong is forgiven at a token's beginning only.

        Raises:
            AccessError: If it does not hold, in the same words whatever is wrong with it.
            InputError: If the key set is none.
            StorageError: If the key set cannot be read, and none was read before.
        """
        key_id = _key_id(token)
        key = self._key(key_id)
        if key is None:
            raise not_authenticated()
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", self._claim]},
            )
            until = float(min(int(claims["exp"]), _FAR))
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise not_authenticated() from None
        principal = claims.get(self._claim)
        if not isinstance(principal, str) or not is_word(principal) or until <= self._now():
            raise not_authenticated()
        return Caller(principal=principal, until=until)

    def _key(self, key_id: str | None) -> jwt.PyJWK | None:
        with self._lock:
            now = self._clock()
            old = self._read_at is None or now - self._read_at > KEEP_SECONDS
            rested = self._tried_at is None or now - self._tried_at > RETRY_SECONDS
            if rested and (old or self._named(key_id) is None):
                self._tried_at = now
                try:
                    self._keys, self._read_at = _usable(_read(self._place)), now
                except (InputError, StorageError):
                    if not self._keys:
                        self._tried_at = None
                        raise
            return self._named(key_id)

    def _named(self, key_id: str | None) -> jwt.PyJWK | None:
        if key_id is None:
            # A token that names no key is accepted only where there is no choice.
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)


def _checked_place(jwks: Path | str) -> Path | str:
    if isinstance(jwks, Path):
        return jwks
    parts = urlsplit(jwks)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return jwks
    if "://" in jwks:
        raise InputError("key set", jwks, "use an https URL or a file")
    return Path(jwks)


def _key_id(token: str) -> str | None:
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise not_authenticated()
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise not_authenticated() from None
    if key_id is not None and not isinstance(key_id, str):
        raise not_authenticated()
    return key_id


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key set comes from where the operator said, and from nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _read(place: Path | str) -> bytes:
    try:
        if isinstance(place, Path):
            with place.open("rb") as stream:
                data = stream.read(MAX_KEYS_BYTES + 1)
        else:
            opener = urllib.request.build_opener(_NoRedirect)
            with opener.open(place, timeout=_TIMEOUT_SECONDS) as answer:
                data = answer.read(MAX_KEYS_BYTES + 1)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"key set {place}", f"cannot be read ({error})", "check the place and the network"
        ) from None
    if len(data) > MAX_KEYS_BYTES:
        raise InputError(f"key set {place}", "is too large", f"at most {MAX_KEYS_BYTES} bytes")
    return bytes(data)


def _usable(data: bytes) -> dict[str | None, jwt.PyJWK]:
    """The keys that may verify a signature, by their identifiers."""
    remedy = "name a JSON Web Key Set with RSA, P-256 or Ed25519 keys"
    try:
        document = json.loads(data)
        entries = document["keys"]
        found = [key for entry in entries if (key := _usable_key(entry)) is not None]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError("key set", "is none", remedy) from None
    if not found:
        raise InputError("key set", "has no key that can be used", remedy)
    keys = {key.key_id: key for key in found}
    if len(keys) != len(found):
        raise InputError("key set", "names two keys alike", remedy)
    return keys


def _usable_key(entry: object) -> jwt.PyJWK | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    try:
        # A private key in the set would verify, too; only its public half is read.
        public = {name: value for name, value in entry.items() if name in _PUBLIC}
        key = jwt.PyJWK.from_dict(public)
    except jwt.PyJWTError:
        return None
    if key.algorithm_name not in ALGORITHMS:
        return None
    return None if getattr(key.key, "key_size", _RSA_BITS) < _smallest(key) else key


_PUBLIC = ("kty", "kid", "use", "alg", "n", "e", "crv", "x", "y")


def _smallest(key: jwt.PyJWK) -> int:
    return _RSA_BITS if key.algorithm_name == "RS256" else 0
