"""IP forwarding is switched on where it is off, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedind.host import forwarding


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (*forwarding.IPV4, *forwarding.IPV6):
        path = tmp_path / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
    return tmp_path


def read(root: Path, name: str) -> str:
    return (root / name.replace(".", "/")).read_text()


def test_what_is_off_is_switched_on(root: Path) -> None:
    names = forwarding.IPV4 + forwarding.IPV6
    assert forwarding.switch_on(names, str(root)) == list(names)
    assert [read(root, name) for name in names] == ["1\n"] * 3


def test_only_what_is_asked_for(root: Path) -> None:
    forwarding.switch_on(forwarding.IPV4, str(root))
    assert [read(root, name) for name in forwarding.IPV6] == ["0\n"] * 2


def test_what_is_on_is_not_written(root: Path) -> None:
    path = root / "net/ipv4/ip_forward"
    path.write_text("1\n")
    path.chmod(0o444)
    before = path.stat().st_mtime_ns
    assert forwarding.switch_on(forwarding.IPV4, str(root)) == []
    assert path.stat().st_mtime_ns == before


def test_what_cannot_be_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"net\.ipv4\.ip_forward") as caught:
        forwarding.switch_on(forwarding.IPV4, str(tmp_path))
    assert caught.value.filename == "net.ipv4.ip_forward"
