"""The values: versions, mounts, degradations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.model import Degradation, EngineVersion, parse_engine_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("28.5.2", (28, 5, 2)),
        ("26.1.5+dfsg1", (26, 1, 5)),
        ("29.0.0-rc.1", (29, 0, 0)),
        ("20.10.24+dfsg1-1+deb12u1", (20, 10, 24)),
        ("29.0", (29, 0, 0)),
        ("29", (29, 0, 0)),
        ("1.2.3.4", (1, 2, 3)),
    ],
)
def test_parse_engine_version(text: str, version: tuple[int, int, int]) -> None:
    assert parse_engine_version(text) == EngineVersion(*version)


@pytest.mark.parametrize("text", ["", "dev", "library-import", "28.x", "-1", ".5"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_engine_version(text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_version_is_read_back_and_ordered_by_release(major: int, minor: int, patch: int) -> None:
    version = EngineVersion(major, minor, patch)
    assert parse_engine_version(str(version)) == version
    assert version.release == EngineVersion(major, minor, 0).release
    assert version.release < EngineVersion(major, minor + 1, 0).release < EngineVersion(major + 1, 0, 0).release


def test_a_degradation_is_what_why_cost_and_mend() -> None:
    assert str(Degradation("a", "b", "c", "d")) == "a: b; c; d"
