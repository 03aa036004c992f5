"""Encrypts endpoint secrets before they are stored, and opens them again.

AES-256-GCM (NIST SP 800-38D). The context, which is the identity of the row, is authenticated with the value: a sealed
value that is copied into another row does not open there. Layout of a sealed value:

    1 byte   version, 1
    8 bytes  key id: the first 8 bytes of the key's SHA-256
    12 bytes nonce, random
    n + 16   ciphertext and tag

Every key opens; the first one seals. To rotate keys that come from a file (the embedded default: `homing secrets
rotate-key --new-key`), put a new key first and seal everything again: a process that meets a key id which it does not
know reads a changed file again. Keys in HOMING_SECRET_KEYS are read at start only, so there the order is: add the new key
as the second one everywhere and restart; make it the first one and restart; `homing secrets rotate-key`; drop the old key
once `homing secrets status` shows that nothing is sealed with it and no backup needs it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.config import Settings
from app.errors import SettingsInvalid

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_HEAD_BYTES: Final = len(_VERSION) + _KEY_ID_BYTES + _NONCE_BYTES
_DISTINCT_MIN: Final = 12
"""Fewest different bytes in a key. 32 random bytes have fewer once in more than 10^12 keys; typed-in ones often do."""
_GENERATE = "python -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())'"


class SecretKeys:
    """The keys that seal and open; the repr shows how many there are and nothing else."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Take keys of 32 bytes each, the current one first.

        Raises:
            SettingsInvalid: there is none, or one is of another length or plainly not random.
        """
        if not keys:
            raise SettingsInvalid(f"HOMING_SECRET_KEYS is empty: give at least one key, made with: {_GENERATE}")
        for number, key in enumerate(keys, start=1):
            if len(key) != KEY_BYTES:
                raise SettingsInvalid(f"secret key {number} is {len(key)} bytes long: it must be {KEY_BYTES} bytes")
            if len(set(key)) < _DISTINCT_MIN:
                raise SettingsInvalid(f"secret key {number} is not random: make one with: {_GENERATE}")
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._current = _key_id(keys[0])
        self._file: Path | None = None
        self._seen: tuple[int, int, int] | None = None

    def __repr__(self) -> str:
        return f"<SecretKeys: {len(self._ciphers)}>"

    @classmethod
    def load(cls, settings: Settings, embedded: bool) -> SecretKeys:
        """The keys that the settings name.

        Args:
            settings: `secret_keys` wins over `secret_keys_file`; both hold comma-separated base64 of 32 bytes each.
            embedded: whether Homing runs its own PostgreSQL. Only then, when neither is set, is `<home>/secret_keys`
                used, and made (mode 600) if it is missing. Safe with several processes at once.

        Raises:
            SettingsInvalid: no key is set, or one cannot be used; the message says what to set and how.
        """
        if settings.secret_keys is not None:
            return cls(_parse(settings.secret_keys.get_secret_value(), "HOMING_SECRET_KEYS"))
        if settings.secret_keys_file is not None:
            return cls._from_file(settings.secret_keys_file)
        if embedded:
            path = _default_file(settings)
            if not path.exists():
                _make(path)
            return cls._from_file(path)
        raise SettingsInvalid(
            "HOMING_SECRET_KEYS is not set: endpoint secrets cannot be encrypted. Set it, or HOMING_SECRET_KEYS_FILE, "
            f"to a key made with: {_GENERATE}"
        )

    @classmethod
    def _from_file(cls, path: Path) -> SecretKeys:
        """Keys that are read again, if the file has changed, when a value needs one that is not among them."""
        seen = _mark_of(path)  # before it is read: a change in between is noticed later
        keys = cls(_parse(_read(path), str(path)))
        keys._file, keys._seen = path, seen
        return keys

    @property
    def current_key_id(self) -> str:
        """Id of the key that seals, 16 hexadecimal digits."""
        return self._current.hex()

    def knows(self, key_id: str) -> bool:
        """Whether what was sealed with this key can be opened, now that a changed file has been read again."""
        return self._cipher(bytes.fromhex(key_id)) is not None

    def seal(self, plaintext: bytes, context: str) -> bytes:
        """`plaintext`, encrypted with the current key and bound to `context`, such as `endpoint_secrets/<id>`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = _VERSION + self._current + nonce
        return head + self._ciphers[self._current].encrypt(nonce, plaintext, _bound(head, context))

    def open(self, sealed: bytes, context: str) -> bytes:
        """What was sealed with the same context.

        Raises:
            SettingsInvalid: the key is not among ours (the message names its id), or the value was changed or belongs
                to another row.
        """
        key_id = key_id_of(sealed)
        cipher = self._cipher(bytes.fromhex(key_id))
        if cipher is None:
            raise SettingsInvalid(
                f"HOMING_SECRET_KEYS has no key with id {key_id}, which {context} was sealed with: add that key back"
            )
        head = sealed[:_HEAD_BYTES]
        try:
            return cipher.decrypt(head[-_NONCE_BYTES:], sealed[_HEAD_BYTES:], _bound(head, context))
        except InvalidTag:
            raise SettingsInvalid(
                f"{context} does not open with its key {key_id}: the stored value was changed or belongs to another row"
            ) from None

    def _cipher(self, key_id: bytes) -> AESGCM | None:
        if key_id not in self._ciphers and self._file is not None and (mark := _mark_of(self._file)) != self._seen:
            self._seen = mark  # a file that cannot be used is not read again for every value
            with suppress(SettingsInvalid):
                fresh = SecretKeys._from_file(self._file)
                self._ciphers, self._current, self._seen = fresh._ciphers, fresh._current, fresh._seen
        return self._ciphers.get(key_id)


def put_new_key_first(settings: Settings) -> SecretKeys:
    """Make a key, put it in front of those in the embedded default key file, in one step; all keys, the new one sealing.

    Processes that run read the file again when they meet a value that is sealed with it. Safe with several at once.

    Raises:
        SettingsInvalid: the keys come from somewhere else, where Homing cannot add one; or the file cannot be used.
    """
    if settings.database_url is not None or settings.secret_keys is not None or settings.secret_keys_file is not None:
        raise SettingsInvalid(
            "--new-key is for the key file that Homing makes beside its own PostgreSQL; here, make a key with: "
            f"{_GENERATE}; add it as the second one to HOMING_SECRET_KEYS (or the file) of every process and restart "
            "them; then make it the first one, restart them, and run `homing secrets rotate-key`"
        )
    path = _default_file(settings)
    if not path.exists():
        _make(path)
    with _alone(path.parent):
        keys = [b64decode(_new_key()), *_parse(_read(path), str(path))]
        with _draft(path, ",\n".join(b64encode(key).decode("ascii") for key in keys)) as draft:
            draft.replace(path)
    return SecretKeys._from_file(path)


def sealed_with(key_id: str) -> bytes:
    """How every value begins that is sealed with a key."""
    return _VERSION + bytes.fromhex(key_id)


def key_id_of(sealed: bytes) -> str:
    """Id of the key that a value was sealed with, 16 hexadecimal digits.

    Raises:
        SettingsInvalid: this is not a sealed value of a known version.
    """
    if len(sealed) < _HEAD_BYTES + _TAG_BYTES or sealed[:1] != _VERSION:
        raise SettingsInvalid("a stored secret is not a sealed value of a version that this program knows")
    return sealed[1 : 1 + _KEY_ID_BYTES].hex()


def _key_id(key: bytes) -> bytes:
    return sha256(key).digest()[:_KEY_ID_BYTES]


def _bound(head: bytes, context: str) -> bytes:
    # Version and key id are authenticated too, so neither can be exchanged.
    return head[: 1 + _KEY_ID_BYTES] + context.encode()


def _parse(text: str, source: str) -> list[bytes]:
    keys = []
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        try:
            keys.append(b64decode(part, validate=True))
        except ValueError:
            # `from None`: the cause's traceback may carry the key.
            raise SettingsInvalid(f"{source}: key {number} is not base64; make one with: {_GENERATE}") from None
    if not keys:
        raise SettingsInvalid(f"{source} holds no key; make one with: {_GENERATE}")
    return keys


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{path} cannot be read as a key file: {type(error).__name__}") from None


def _default_file(settings: Settings) -> Path:
    return settings.home / "secret_keys"


def _new_key() -> str:
    return b64encode(secrets.token_bytes(KEY_BYTES)).decode("ascii")


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """What differs once a file has been replaced or rewritten; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _make(path: Path) -> None:
    """Make a key file in one step: written whole beside its place, then linked, which fails if another was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path, _new_key()) as draft, suppress(FileExistsError):
        path.hardlink_to(draft)


@contextmanager
def _draft(path: Path, text: str) -> Iterator[Path]:
    """A file with this text beside `path`, mode 600, on disk; removed at the end if it is still there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        yield draft
        _sync(path.parent)  # a key that seals must not be lost with the power
    finally:
        draft.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks for it is in this block."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
