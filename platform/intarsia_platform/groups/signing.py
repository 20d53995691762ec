"""Signatures over adapters, with a key of the home that never leaves it.

What is signed is the folder that ``intarsia adapters export`` writes, by the tool that others sign
models with (OpenSSF Model Signing, an in-toto statement in a DSSE envelope in a Sigstore bundle),
so that whoever gets such a folder can check it without Intarsia:
``model_signing verify key FOLDER --signature BUNDLE --public_key signing-key.pub``. Nothing here
asks the network.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from intarsia_client.errors import IntegrityError, StorageError
from intarsia_client.files import bytes_digest, write_bytes

PRIVATE_KEY = "signing-key.pem"
PUBLIC_KEY = "signing-key.pub"
MAX_BUNDLE_BYTES = 1 << 20

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_REMEDY = "make it again from its data, or restore it from a backup"


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """An ECDSA key on the curve P-256, as two PEM files.

    Args:
        private: The private key's file, readable by its owner alone.
        public: The public key's file.
    """

    private: Path
    public: Path

    @classmethod
    def open(cls, folder: Path) -> SigningKey:
        """Find a home's key, and make it on first use.

        Args:
            folder: The home's folder of keys.

        Returns:
            The key. Of several processes that make it at the same time one wins.

        Raises:
            StorageError: If it cannot be made or read, or others may read it.
        """
        private, public = folder / PRIVATE_KEY, folder / PUBLIC_KEY
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not private.exists():
                _create(private)
            mode = stat.S_IMODE(private.stat().st_mode)
            key = _private_key(private)
        except OSError as error:
            raise StorageError(
                f"signing key {private}", error.strerror or error, "check the home's keys folder"
            ) from None
        if mode & 0o077:
            raise StorageError(
                f"signing key {private}", f"mode {mode:o}, others may read it", "chmod it to 600"
            )
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        if not public.exists() or public.read_bytes() != pem:
            write_bytes(public, pem)
        return cls(private=private, public=public)

    @property
    def digest(self) -> str:
        """Digest of the public key's file, by which a signature names it."""
        return bytes_digest(self.public.read_bytes())


def sign(directory: Path, key: SigningKey) -> bytes:
    """Sign every file of a folder.

    Args:
        directory: The folder.
        key: The key.

    Returns:
        The signature, a Sigstore bundle in JSON.

    Raises:
        StorageError: If the folder cannot be read.
    """
    from model_signing import signing

    configuration = signing.Config()  # type: ignore[no-untyped-call]
    configuration.set_hashing_config(_every_file())
    configuration.use_elliptic_key_signer(private_key=key.private)
    with _library_file() as path:
        try:
            configuration.sign(directory, path)
            return path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"signing {directory}", error.strerror or error, "check that it can be read"
            ) from None


def verify(directory: Path, bundle: bytes, public_key: Path) -> None:
    """Check that a folder holds exactly the files that were signed, unaltered.

    Args:
        directory: The folder.
        bundle: What :func:`sign` gave, or the same tool elsewhere.
        public_key: The file of the signer's public key.

    Raises:
        IntegrityError: If a file differs, is missing or was added, or another key signed.
    """
    from model_signing import verifying

    # What others wrote is read by ours first: it allows one form only, and bounds it.
    verify_files(folder_digests(directory), bundle, public_key)
    configuration = verifying.Config()  # type: ignore[no-untyped-call]
    configuration.set_hashing_config(_every_file())
    configuration.use_elliptic_key_verifier(public_key=public_key)
    with _library_file() as path:
        path.write_bytes(bundle)
        try:
            configuration.verify(directory, path)
        except Exception as error:
            raise _not_signed(str(directory), error) from None


def verify_files(digests: Mapping[str, str], bundle: bytes, public_key: Path) -> None:
    """Check a signature against the digests of files that are known already.

    It says what :func:`verify` says without writing a folder, for whoever loads many adapters.

    Args:
        digests: From each file's name to the SHA-256 of its bytes, ``"sha256:…"``.
        bundle: The signature.
        public_key: The file of the signer's public key.

    Raises:
        IntegrityError: If these are not exactly the files that were signed with that key.
        StorageError: If the public key cannot be read.
    """
    signed = _signed_files(bundle, _public_key(public_key))
    if signed != dict(digests):
        odd = sorted(set(signed.items()) ^ set(digests.items()))[0][0]
        raise _not_signed(odd, "is not what was signed")


def folder_digests(directory: Path) -> dict[str, str]:
    """Digests of all files of a folder, by their paths in it.

    Args:
        directory: The folder.

    Returns:
        From each path, with slashes, to ``"sha256:…"``.

    Raises:
        IntegrityError: If something in it is neither a file nor a folder.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _not_signed(str(path), "not a plain file")
        if path.is_file():
            found[path.relative_to(directory).as_posix()] = bytes_digest(path.read_bytes())
    return found


def _signed_files(bundle: bytes, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The digests that a bundle's statement gives, after its signature was found to be the key's.

    The envelope is DSSE's (github.com/secure-systems-lab/dsse, protocol 1.0).
    """
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise _not_signed("signature", f"larger than {MAX_BUNDLE_BYTES} bytes")
    try:
        envelope = json.loads(bundle)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = envelope["signatures"]
        signed = base64.b64decode(signature["sig"], validate=True)
        if envelope["payloadType"] != _PAYLOAD_TYPE:
            raise ValueError("another kind of statement")
        words = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode()
        key.verify(signed, words + payload, ec.ECDSA(hashes.SHA256()))
        return _resources(json.loads(payload))
    except InvalidSignature:
        raise _not_signed("signature", "another key's, or altered") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _not_signed("signature", f"cannot be read ({error})") from None


def _resources(statement: Any) -> dict[str, str]:
    how = statement["predicate"]["serialization"]
    if statement["predicateType"] != _PREDICATE_TYPE:
        raise ValueError("another kind of predicate")
    if (how["method"], how["hash_type"]) != ("files", "sha256"):
        raise ValueError("files are not hashed whole with SHA-256")
    entries = statement["predicate"]["resources"]
    found = {str(one["name"]): f"sha256:{one['digest']}" for one in entries}
    if len(found) != len(entries):
        raise ValueError("a file is named twice")
    return found


def _create(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # A link, since a rename would replace the key that another process has just made.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_ours(key.curve):
        raise _no_key(path, "another kind of key")
    return key


def _public_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, error) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_ours(key.curve):
        raise _no_key(path, "another kind of key")
    return key


def _is_ours(curve: ec.EllipticCurve) -> bool:
    return isinstance(curve, ec.SECP256R1)


def _every_file() -> Any:
    """The library's way to hash that leaves nothing out, not even what looks like a part of git."""
    from model_signing import hashing

    configuration = hashing.Config()  # type: ignore[no-untyped-call]
    return configuration.set_ignored_paths(paths=[], ignore_git_paths=False)


@contextlib.contextmanager
def _library_file() -> Iterator[Path]:
    """A place for the bundle, which the library reads and writes as a file only."""
    with tempfile.TemporaryDirectory(prefix="intarsia-") as folder:
        yield Path(folder) / "bundle.json"


def _no_key(path: Path, problem: object) -> StorageError:
    return StorageError(f"signing key {path}", problem, "restore it from a backup")


def _not_signed(thing: str, problem: object) -> IntegrityError:
    return IntegrityError(f"signed adapter: {thing}", problem, _REMEDY)
