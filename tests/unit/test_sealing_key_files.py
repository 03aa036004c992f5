"""A key file that changes while processes run: read again when, and only when, that can help."""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.config import Settings, load_settings
from app.errors import SettingsInvalid
from app.sealing import SecretKeys, put_new_key_first, sealed_with

CONTEXT = "endpoint_secrets/1"


def settings_of(folder: Path, **values: object) -> Settings:
    return load_settings(home=folder, _env_file=None, **values)


def test_a_running_process_opens_what_a_key_seals_that_was_put_into_its_file_later(tmp_path: Path) -> None:
    running = SecretKeys.load(settings_of(tmp_path), embedded=True)
    before = running.current_key_id
    sealed = put_new_key_first(settings_of(tmp_path)).seal(b"a", CONTEXT)
    assert running.open(sealed, CONTEXT) == b"a"
    assert running.current_key_id != before, "it seals with the new key too"


def test_an_unchanged_file_is_not_read_again_for_an_unknown_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = SecretKeys.load(settings_of(tmp_path), embedded=True)
    foreign = SecretKeys([os.urandom(32)]).seal(b"a", CONTEXT)
    reads: list[Path] = []
    monkeypatch.setattr(Path, "read_text", lambda path, *_: reads.append(path))
    for _ in range(3):
        with pytest.raises(SettingsInvalid, match="has no key with id"):
            running.open(foreign, CONTEXT)
    assert reads == []


@pytest.mark.parametrize("text", ["", "not base64", "QUFB"])
def test_a_file_that_became_unusable_leaves_the_known_keys_at_work(tmp_path: Path, text: str) -> None:
    running = SecretKeys.load(settings_of(tmp_path), embedded=True)
    sealed = running.seal(b"a", CONTEXT)
    (tmp_path / "secret_keys").write_text(text)
    assert not running.knows("00" * 8)
    assert running.open(sealed, CONTEXT) == b"a"


def test_keys_from_the_environment_never_look_at_a_file(tmp_path: Path) -> None:
    key = os.urandom(32)
    running = SecretKeys.load(settings_of(tmp_path, secret_keys=b64encode(key).decode()), embedded=True)
    made = put_new_key_first(settings_of(tmp_path))
    assert not running.knows(made.current_key_id)


def test_a_new_key_comes_first_and_the_old_ones_still_open(tmp_path: Path) -> None:
    old = SecretKeys.load(settings_of(tmp_path), embedded=True)
    sealed = old.seal(b"a", CONTEXT)
    new = put_new_key_first(settings_of(tmp_path))
    assert new.current_key_id != old.current_key_id
    assert new.open(sealed, CONTEXT) == b"a"
    assert new.seal(b"a", CONTEXT).startswith(sealed_with(new.current_key_id))
    assert SecretKeys.load(settings_of(tmp_path), embedded=True).current_key_id == new.current_key_id
    assert stat.S_IMODE((tmp_path / "secret_keys").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret_keys"], "no draft is left behind"


def test_new_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    SecretKeys.load(settings_of(tmp_path), embedded=True)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: put_new_key_first(settings_of(tmp_path)), range(16)))
    kept = SecretKeys.load(settings_of(tmp_path), embedded=True)
    assert repr(kept) == "<SecretKeys: 17>"
    assert all(kept.knows(keys.current_key_id) for keys in made)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"database_url": "postgresql://somewhere/db"},
        {"secret_keys": b64encode(os.urandom(32)).decode()},
        {"secret_keys_file": Path("somewhere")},
    ],
)
def test_no_key_is_made_where_the_keys_come_from_somewhere_else(tmp_path: Path, elsewhere: dict[str, object]) -> None:
    with pytest.raises(SettingsInvalid, match="second one"):
        put_new_key_first(settings_of(tmp_path, **elsewhere))
    assert not (tmp_path / "secret_keys").exists()
