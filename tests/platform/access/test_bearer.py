"""Bearer tokens against a local key set: what is taken, and the many ways not to be."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from intarsia_client.errors import AccessError, InputError, StorageError
from intarsia_platform.access.bearer import MAX_KEYS_BYTES, BearerTokens
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "intarsia"


@pytest.fixture(scope="module")
def private():
    return {
        "rsa": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "ec": ("ES256", ec.generate_private_key(ec.SECP256R1())),
        "ed": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    }


def public(key_id, algorithm, key, **more):
    kinds = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "ES384": ECAlgorithm}
    made = kinds.get(algorithm, OKPAlgorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": key_id, "use": "sig", **more}


def key_set(private, *names):
    return {"keys": [public(name, *private[name]) for name in names]}


def claims(**changes):
    now = int(time.time())
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 60, **changes}
    return {name: value for name, value in given.items() if value is not None}


def signed(private, name="rsa", *, headers=None, **changes):
    algorithm, key = private[name]
    given = {"kid": name} if headers is None else headers
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=given)


def part(value) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture
def tokens(tmp_path, private):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(key_set(private, "rsa", "ec", "ed")))
    return BearerTokens(path, ISSUER, AUDIENCE)


@pytest.mark.parametrize("name", ["rsa", "ec", "ed"])
def test_each_kind_of_key_verifies(tokens, private, name):
    assert tokens.verify(signed(private, name)).principal == "ann"
    assert tokens.verify(signed(private, name, aud=["other", AUDIENCE])).principal == "ann"


def test_the_claim_that_names_the_principal_can_be_chosen(tmp_path, private):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(key_set(private, "ed")))
    tokens = BearerTokens(str(path), ISSUER, AUDIENCE, "email")
    assert (
        tokens.verify(signed(private, "ed", email="ann@example.com")).principal == "ann@example.com"
    )
    assert tokens.verify(signed(private, "ed", headers={}, email="a@b")).principal == "a@b"
    with pytest.raises(AccessError):
        tokens.verify(signed(private, "ed"))


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1}, {"exp": None}, {"exp": "soon"}, {"exp": float("inf")}, {"nbf": 2**40},
        {"iss": "https://other"}, {"iss": None}, {"aud": "other"}, {"aud": None}, {"aud": []},
        {"sub": None}, {"sub": ""}, {"sub": "a\nb"}, {"sub": "x" * 256}, {"iat": 2**40},
    ],
    ids=str,
)  # fmt: skip
def test_claims_must_hold(tokens, private, changes):
    with pytest.raises(AccessError, match="credential: is not valid here"):
        tokens.verify(signed(private, "ed", **changes))


def forgeries(private):
    good = signed(private)
    head, body, signature = good.split(".")
    published = (
        private["rsa"][1]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    symmetric = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{body}"
    code = hmac.new(published, symmetric.encode(), hashlib.sha256).digest()
    stranger = ed25519.Ed25519PrivateKey.generate()
    yield f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}."
    yield f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}.{signature}"
    # The published key taken for a shared secret.
    yield f"{symmetric}.{base64.urlsafe_b64encode(code).rstrip(b'=').decode()}"
    yield jwt.encode(claims(), stranger, algorithm="EdDSA", headers={"kid": "ed"})
    yield jwt.encode(claims(), stranger, algorithm="EdDSA", headers={"kid": "new"})
    yield jwt.encode(claims(), private["rsa"][1], algorithm="RS512", headers={"kid": "rsa"})
    yield jwt.encode(claims(), private["rsa"][1], algorithm="PS256", headers={"kid": "rsa"})
    yield signed(private, "rsa", headers={"kid": "ec"})
    yield signed(private, "rsa", headers={})
    yield f"{head}.{part(claims(sub='eve'))}.{signature}"
    yield f"{part({'alg': 'RS256', 'kid': ['rsa']})}.{body}.{signature}"
    yield f"{part({'alg': 'RS256', 'kid': 'rsa', 'crit': ['x'], 'x': 1})}.{body}.{signature}"
    yield f"{part([1])}.{body}.{signature}"
    yield f"{head}.{body}"
    yield f"{good}.more"
    yield good + "A" * 20_000
    yield from ("", ".", "..", "a.b.c", "é.é.é", "\ud800", published.decode())


def test_no_forgery_is_taken_and_all_hear_the_same(tokens, private):
    said = set()
    for forgery in forgeries(private):
        with pytest.raises(AccessError) as caught:
            tokens.verify(forgery)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
def test_keys_that_must_not_be_used_are_not(tmp_path, private):
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - must be refused
    curve = ec.generate_private_key(ec.SECP384R1())
    secret = {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}
    sealing = public("seal", *private["ec"], use="enc")
    keys = [secret, sealing, public("small", "RS256", small), public("curve", "ES384", curve), 3]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [*keys, public("ed", *private["ed"])]}))
    tokens = BearerTokens(path, ISSUER, AUDIENCE)
    assert tokens.verify(signed(private, "ed")).principal == "ann"
    bad = [
        jwt.encode(claims(), b"s" * 32, algorithm="HS256", headers={"kid": "oct"}),
        signed(private, "ec", headers={"kid": "seal"}),
        jwt.encode(claims(), small, algorithm="RS256", headers={"kid": "small"}),
        jwt.encode(claims(), curve, algorithm="ES384", headers={"kid": "curve"}),
    ]
    for token in bad:
        with pytest.raises(AccessError):
            tokens.verify(token)
    path.write_text(json.dumps({"keys": keys}))
    with pytest.raises(InputError, match="no key that can be used"):
        BearerTokens(path, ISSUER, AUDIENCE).verify(signed(private, "ed"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 3}', '{"keys": []}', "[" * 100_000])
def test_what_is_no_key_set_is_said(tmp_path, private, text):
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(InputError, match="key set"):
        BearerTokens(path, ISSUER, AUDIENCE).verify(signed(private))


def test_a_key_set_that_cannot_be_read_or_is_too_large(tmp_path, private):
    with pytest.raises(StorageError, match="cannot be read"):
        BearerTokens(tmp_path / "none", ISSUER, AUDIENCE).verify(signed(private))
    (tmp_path / "large").write_bytes(b" " * (MAX_KEYS_BYTES + 1))
    with pytest.raises(InputError, match="too large"):
        BearerTokens(tmp_path / "large", ISSUER, AUDIENCE).verify(signed(private))
    for place in ("http://issuer.example/keys", "file:///etc/passwd", "ftp://localhost/keys"):
        with pytest.raises(InputError, match="https URL or a file"):
            BearerTokens(place, ISSUER, AUDIENCE)
    with pytest.raises(InputError, match="empty"):
        BearerTokens(tmp_path / "x", "", AUDIENCE)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_new_key_is_found_but_not_asked_for_at_every_token(tmp_path, private):
    path, clock = tmp_path / "jwks.json", Clock()
    path.write_text(json.dumps(key_set(private, "rsa")))
    tokens = BearerTokens(path, ISSUER, AUDIENCE, clock=clock)
    assert tokens.verify(signed(private, "rsa")).principal == "ann"
    path.write_text(json.dumps(key_set(private, "ec")))
    with pytest.raises(AccessError):
        tokens.verify(signed(private, "ec"))
    clock.now = 31
    assert tokens.verify(signed(private, "ec")).principal == "ann"
    with pytest.raises(AccessError):
        tokens.verify(signed(private, "rsa"))


def test_while_the_set_cannot_be_read_the_last_one_stays(tmp_path, private):
    path, clock = tmp_path / "jwks.json", Clock()
    path.write_text(json.dumps(key_set(private, "rsa")))
    tokens = BearerTokens(path, ISSUER, AUDIENCE, clock=clock)
    tokens.verify(signed(private, "rsa"))
    path.unlink()
    clock.now = 1000
    assert tokens.verify(signed(private, "rsa")).principal == "ann"
    path.write_text(json.dumps(key_set(private, "ec")))
    clock.now = 1031
    with pytest.raises(AccessError):
        tokens.verify(signed(private, "rsa"))


@pytest.fixture
def served(private):
    """A key set over HTTP on this machine; gives its address and the paths asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/keys")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(key_set(private, "ed")).encode())

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_is_asked_once_and_redirections_are_not_followed(served, private):
    address, asked = served
    tokens = BearerTokens(f"{address}/keys", ISSUER, AUDIENCE)
    for _ in range(3):
        assert tokens.verify(signed(private, "ed")).principal == "ann"
    assert asked == ["/keys"]
    with pytest.raises(StorageError, match="302"):
        BearerTokens(f"{address}/moved", ISSUER, AUDIENCE).verify(signed(private, "ed"))
    assert asked == ["/keys", "/moved"]


def test_a_token_ends_when_it_says_so_without_leeway(tmp_path, private):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(key_set(private, "ed")))
    ends = int(time.time()) + 40
    seen = [float(ends) - 0.5]
    tokens = BearerTokens(path, ISSUER, AUDIENCE, now=lambda: seen[-1])
    assert tokens.verify(signed(private, "ed", exp=ends)).until == ends
    assert tokens.verify(signed(private, "ed", exp=10**30)).until == 1 << 50
    seen.append(float(ends))
    with pytest.raises(AccessError, match="credential: is not valid here"):
        tokens.verify(signed(private, "ed", exp=ends))
