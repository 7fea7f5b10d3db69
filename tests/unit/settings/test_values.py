"""What the text of a variable may be."""

from __future__ import annotations

import pytest

from cachedind.settings.values import parse_bool, parse_duration_s, parse_key


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("10s", 10), ("500ms", 0.5), ("1.5s", 1.5), ("5m", 300), ("1h30m", 5400), ("14d", 1209600), ("0s", 0)],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "-1s", "s", "1.s", "10 s", "1h 30m", "ten", "1e3s", "1.5.5s", "10S", "inf"])
def test_what_is_no_duration_is_told_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 5m or 14d"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("group/project", "group/project"),
        ("  a b\n", "a b"),
        ("../../etc", "../../etc"),
        ("a,b\nc", "a,b\nc"),
        ("Größe ☃", "Größe ☃"),
        ("\udcff", "\udcff"),
        ("x" * 100_000, "x" * 100_000),
    ],
)
def test_any_text_is_a_key(text: str, key: str) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize("text", ["", "  ", "a\0b"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="any text that is not empty and has no NUL"):
        parse_key(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("no", False)],
)
def test_parse_bool(text: str, value: bool) -> None:
    assert parse_bool(text) is value


@pytest.mark.parametrize("text", ["", "2", "y", "enable"])
def test_what_is_no_bool(text: str) -> None:
    with pytest.raises(ValueError, match="1 or 0"):
        parse_bool(text)
