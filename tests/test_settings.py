"""The settings: from flags and variables, each fault named."""

from pathlib import Path
from typing import Any

import pytest

from twinfer_server.settings import InvalidSettings, read_settings


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_in_flight_requests", "many", ("'many'", "integer")),
        ("max_message_bytes", "100", ("'100'", "greater than or equal to 1024")),
        ("breaker_failures", "21", ("'21'", "breaker_window, which is 20")),
        ("drain_seconds", "-1", ("'-1'", "greater than 0")),
        ("drain_seconds", "nan", ("'nan'", "finite")),
        ("log_level", "loud", ("'loud'", "'warning'")),
        ("listen", "localhost", ("'localhost'", "HOST:PORT")),
        ("listen", ":50051", ("':50051'", "HOST:PORT")),
        ("listen", "127.0.0.1:99999", ("'127.0.0.1:99999'", "HOST:PORT")),
        ("admin_listen", "50052", ("'50052'", "HOST:PORT")),
    ],
)
@pytest.mark.parametrize("way", ["flag", "variable"])
def test_a_setting_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, way: str, name: str, value: str, words: tuple[str, ...]
) -> None:
    flags: dict[str, Any] = {name: value} if way == "flag" else {}
    if way == "variable":
        monkeypatch.setenv(f"TWINFER_{name.upper()}", value)
    with pytest.raises(InvalidSettings) as refused:
        read_settings(**flags)
    assert [word for word in (name, *words) if word not in str(refused.value)] == []


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(InvalidSettings) as refused:
        read_settings(drain_seconds="never", max_text_bytes="0")
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == ["max_text_bytes", "drain_seconds"]


def test_trust_lists_are_written_like_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINFER_TRUST_LIST", "/etc/one:/etc/two")
    assert read_settings().trust_list == [Path("/etc/one"), Path("/etc/two")]
    assert read_settings(trust_list=[Path("three")]).trust_list == [Path("three")]
    monkeypatch.setenv("TWINFER_TRUST_LIST", "")
    assert read_settings().trust_list == []


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::]:50051", "example.org:50051", "unix:/run/twinfer.sock"])
def test_an_address_is(address: str) -> None:
    assert read_settings(listen=address, admin_listen="").listen == address


def test_a_flag_that_is_not_given_leaves_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINFER_LOG_JSON", "true")
    assert read_settings(log_json=None).log_json
    assert not read_settings(log_json=False).log_json
