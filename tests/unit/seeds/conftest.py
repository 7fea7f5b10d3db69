"""What all tests of seeds share."""

from __future__ import annotations

import pytest

from cachedind.seeds import platforms


@pytest.fixture(autouse=True)
def amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are built for this platform, whatever machine the tests run on."""
    monkeypatch.setattr(platforms, "machine", lambda: "linux/amd64")
