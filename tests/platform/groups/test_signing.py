import base64
import json
import os
import socket
import stat
import threading

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, strategies
from intarsia_client.errors import IntegrityError, StorageError
from intarsia_platform.groups.signing import (
    SigningKey,
    folder_digests,
    sign,
    verify,
    verify_files,
)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return SigningKey.open(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "adapter_config.json").write_text("{}")
    (made / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (made / ".gitignore").write_text("signed too")
    return made


@pytest.fixture(scope="module")
def signed(key, tmp_path_factory):
    made = tmp_path_factory.mktemp("signed")
    (made / "a").write_text("a")
    return folder_digests(made), sign(made, key)


def both_refuse(folder, bundle, key):
    """The library says so, and the short way too."""
    with pytest.raises(IntegrityError, match="signed adapter"):
        verify(folder, bundle, key.public)
    with pytest.raises(IntegrityError, match="signed adapter"):
        verify_files(folder_digests(folder), bundle, key.public)


def test_a_folder_is_signed_and_checked_without_a_network(folder, key, monkeypatch):
    def no_network(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    bundle = sign(folder, key)
    verify(folder, bundle, key.public)
    verify_files(folder_digests(folder), bundle, key.public)


def test_the_library_alone_accepts_what_we_sign(folder, key, tmp_path):
    from model_signing import verifying

    (folder / ".gitignore").unlink()  # What an exported adapter never has, and the tool skips.
    (tmp_path / "bundle").write_bytes(sign(folder, key))
    configuration = verifying.Config().use_elliptic_key_verifier(public_key=key.public)
    configuration.verify(folder, tmp_path / "bundle")


def test_every_change_of_the_files_is_found(folder, key):
    bundle = sign(folder, key)
    config = folder / "adapter_config.json"
    config.write_text("{ }")
    both_refuse(folder, bundle, key)
    config.unlink()
    both_refuse(folder, bundle, key)
    config.write_text("{}")
    verify(folder, bundle, key.public)
    (folder / ".gitignore").write_text("altered")
    both_refuse(folder, bundle, key)


def test_an_added_file_is_found(folder, key):
    bundle = sign(folder, key)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    both_refuse(folder, bundle, key)


def test_a_link_is_no_file(folder, key, tmp_path):
    bundle = sign(folder, key)
    (folder / "adapter_config.json").rename(tmp_path / "elsewhere")
    (folder / "adapter_config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError):
        verify(folder, bundle, key.public)


def test_another_keys_signature_is_refused(folder, key, tmp_path):
    other = SigningKey.open(tmp_path / "other")
    both_refuse(folder, sign(folder, other), key)


def test_a_statement_that_was_exchanged_is_refused(folder, key):
    bundle = json.loads(sign(folder, key))
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    (folder / "adapter_config.json").write_text("{ }")
    changed = folder_digests(folder)["adapter_config.json"].removeprefix("sha256:")
    statement["predicate"]["resources"][1]["digest"] = changed
    assert statement["predicate"]["resources"][1]["name"] == "adapter_config.json"
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    both_refuse(folder, json.dumps(bundle).encode(), key)


@given(data=strategies.data())
def test_no_altered_bundle_vouches_for_other_files(signed, key, data):
    digests, bundle = signed
    place = data.draw(strategies.integers(0, len(bundle) - 1))
    altered = bytearray(bundle)
    altered[place] ^= data.draw(strategies.integers(1, 255))
    other = {"a": "sha256:" + data.draw(strategies.sampled_from("0123456789abcdef")) * 64}
    assert other != digests
    with pytest.raises(IntegrityError):
        verify_files(other, bytes(altered), key.public)


def test_no_signed_byte_may_change(signed, key):
    digests, bundle = signed
    verify_files(digests, bundle, key.public)
    parsed = json.loads(bundle)
    payload = base64.b64decode(parsed["dsseEnvelope"]["payload"])
    for place in range(len(payload)):
        altered = bytearray(payload)
        altered[place] ^= 1
        parsed["dsseEnvelope"]["payload"] = base64.b64encode(altered).decode()
        with pytest.raises(IntegrityError, match="another key's, or altered"):
            verify_files(digests, json.dumps(parsed).encode(), key.public)


@given(garbage=strategies.binary(max_size=200) | strategies.text(max_size=50).map(json.dumps))
def test_garbage_is_no_signature(signed, key, garbage):
    data = garbage if isinstance(garbage, bytes) else garbage.encode()
    with pytest.raises(IntegrityError):
        verify_files(signed[0], data, key.public)


def test_a_huge_bundle_is_not_read(signed, key):
    with pytest.raises(IntegrityError, match="larger"):
        verify_files(signed[0], b" " * (1 << 20) + signed[1], key.public)


def test_the_private_key_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        key = SigningKey.open(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in key.public.read_bytes()
    assert [path.name for path in (tmp_path / "keys").iterdir() if path.name[0] == "."] == []
    key.private.chmod(0o640)
    with pytest.raises(StorageError, match="chmod"):
        SigningKey.open(tmp_path / "keys")


def test_one_key_wins_where_many_make_it(tmp_path):
    barrier, digests = threading.Barrier(8), []

    def make():
        barrier.wait()
        digests.append(SigningKey.open(tmp_path / "keys").digest)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8 and len(set(digests)) == 1


@pytest.mark.parametrize("content", [b"", b"no key", None])
def test_a_file_that_is_no_such_key_is_refused(tmp_path, content):
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = SigningKey.open(tmp_path / "keys")
    if content is None:
        content = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    key.private.write_bytes(content)
    with pytest.raises(StorageError, match="signing key"):
        SigningKey.open(tmp_path / "keys")
