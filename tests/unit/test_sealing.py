from __future__ import annotations

import multiprocessing
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config import Settings
from app.errors import SettingsInvalid
from app.sealing import SecretKeys, key_id_of

OLD, NEW = (bytes(range(start, start + 32)) for start in (0, 100))
CONTEXT = "endpoint_secrets/7"


def encoded(*keys: bytes) -> str:
    return ",".join(b64encode(key).decode() for key in keys)


def load(tmp_path: Path, embedded: bool = False, **values: object) -> SecretKeys:
    return SecretKeys.load(Settings(_env_file=None, home=tmp_path / "home", **values), embedded)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_sealed_value_opens_and_shows_nothing(plaintext: bytes) -> None:
    keys = SecretKeys([NEW])
    sealed = keys.seal(plaintext, CONTEXT)
    assert keys.open(sealed, CONTEXT) == plaintext
    assert len(sealed) == 1 + 8 + 12 + len(plaintext) + 16
    assert len(plaintext) < 4 or plaintext not in sealed


def test_same_value_is_sealed_differently_each_time() -> None:
    keys = SecretKeys([NEW])
    assert len({keys.seal(b"secret", CONTEXT) for _ in range(100)}) == 100


def test_value_does_not_open_in_another_row() -> None:
    keys = SecretKeys([NEW])
    with pytest.raises(SettingsInvalid, match="another row"):
        keys.open(keys.seal(b"CANARY", CONTEXT), "endpoint_secrets/8")


def test_any_changed_byte_is_noticed() -> None:
    keys = SecretKeys([NEW])
    sealed = keys.seal(b"CANARY", CONTEXT)
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(SettingsInvalid) as raised:
            keys.open(bytes(changed), CONTEXT)
        assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01" * 36, b"\x02" * 64])
def test_what_is_not_a_sealed_value_is_refused(value: bytes) -> None:
    with pytest.raises(SettingsInvalid, match="sealed value"):
        SecretKeys([NEW]).open(value, CONTEXT)


def test_first_key_seals_and_every_key_opens() -> None:
    before, during = SecretKeys([OLD]), SecretKeys([NEW, OLD])
    assert during.open(before.seal(b"a", CONTEXT), CONTEXT) == b"a"
    sealed = during.seal(b"b", CONTEXT)
    assert key_id_of(sealed) == during.current_key_id == SecretKeys([NEW]).current_key_id
    assert SecretKeys([NEW]).open(sealed, CONTEXT) == b"b"


def test_missing_key_is_named_by_its_id() -> None:
    sealed = SecretKeys([OLD]).seal(b"a", CONTEXT)
    with pytest.raises(SettingsInvalid, match=key_id_of(sealed)):
        SecretKeys([NEW]).open(sealed, CONTEXT)


@pytest.mark.parametrize("key", [bytes(32), b"k" * 32, b"password" * 4, bytes(31), bytes(range(33)), b""])
def test_weak_or_misshapen_key_is_refused(key: bytes, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as raised:
        load(tmp_path, secret_keys=encoded(NEW, key) if key else ",")
    assert encoded(key) not in str(raised.value) or not key


def test_key_that_is_not_base64_is_refused_without_being_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as raised:
        load(tmp_path, secret_keys="CANARY!")
    assert "CANARY" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_keys_come_from_the_setting_or_from_the_named_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(encoded(NEW, OLD) + "\n")
    assert load(tmp_path, secret_keys_file=file).current_key_id == SecretKeys([NEW]).current_key_id
    both = load(tmp_path, secret_keys=f" {encoded(OLD)} , {encoded(NEW)}", secret_keys_file=file)
    assert both.current_key_id == SecretKeys([OLD]).current_key_id
    assert not (tmp_path / "home").exists()


def test_named_file_that_is_missing_is_never_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read"):
        load(tmp_path, embedded=True, secret_keys_file=tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_a_real_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"HOMING_SECRET_KEYS(.|\n)*base64"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_embedded_database_gets_a_private_key_file_that_is_kept(tmp_path: Path) -> None:
    first = load(tmp_path, embedded=True)
    file = tmp_path / "home" / "secret_keys"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(b64decode(file.read_text())) == 32
    assert load(tmp_path, embedded=True).current_key_id == first.current_key_id
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["secret_keys"]


def _load_in_a_process(home: Path) -> str:
    return load(home, embedded=True).current_key_id


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        ids = pool.map(_load_in_a_process, [tmp_path] * 16, chunksize=1)
    assert len(set(ids)) == 1
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["secret_keys"]


def test_repr_shows_no_key() -> None:
    assert repr(SecretKeys([NEW, OLD])) == "<SecretKeys: 2>"
