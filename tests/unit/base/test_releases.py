"""What is decided by an engine's release."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cachedind.base import releases
from cachedind.base.model import EngineVersion

HOUSE = Path(__file__).parents[3] / "entrypoint" / "cachedind"


def engine(text: str) -> EngineVersion:
    major, minor = text.split(".")
    return EngineVersion(int(major), int(minor), 3)


@pytest.mark.parametrize(
    ("engines", "tested"),
    [
        ([engine("28.5")], True),
        ([engine("26.1"), engine("28.5")], True),
        ([engine("28.4")], False),
        ([engine("28.5"), engine("31.0")], False),
        ([engine("28.5"), None], False),
        ([], False),
    ],
)
def test_tested_are_all_or_none(engines: list[EngineVersion | None], tested: bool) -> None:
    assert releases.are_tested(engines) is tested


def test_people_read_them_in_order() -> None:
    assert releases.name_tested() == "26.1, 28.5"


@pytest.mark.parametrize(
    ("release", "has_store", "prefers_store", "has_max_used"),
    [
        ("23.0", False, False, False),
        ("24.0", True, False, False),
        ("27.5", True, False, False),
        ("28.0", True, False, True),
        ("29.0", True, True, True),
        ("30.1", True, True, True),
    ],
)
def test_what_a_release_can(release: str, has_store: bool, prefers_store: bool, has_max_used: bool) -> None:
    found = engine(release)
    assert releases.has_containerd_store(found) is has_store
    assert releases.prefers_containerd_store(found) is prefers_store
    assert releases.has_max_used_space(found) is has_max_used


def test_nobody_else_compares_with_a_number() -> None:
    """`engine.major >= 28` stands in one file: who raises an engine looks there."""
    found = []
    for path in sorted(HOUSE.rglob("*.py")):
        if path.name == "releases.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                is_release = any(
                    isinstance(s, ast.Attribute) and s.attr in ("major", "minor", "release") for s in sides
                )
                if is_release and any(isinstance(side, (ast.Constant, ast.Tuple)) for side in sides):
                    found.append(f"{path.relative_to(HOUSE)}:{node.lineno}")
    assert found == []


def test_whoever_asks_a_daemon_names_the_version_of_the_api() -> None:
    """Else the SDK would ask in its own. The job's daemon is the user's, who may have limited its versions: that is
    asked in one that it has."""
    asking = {}
    for path in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("DockerClient", "APIClient", "from_env"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                asking[path.name] = given.get("version")
    assert asking == {"private_daemon.py": "releases.API_VERSION", "seeding.py": "'auto'"}


# ---- containerd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("containerd", "database"),
    [
        ("1.7.24", (1, 3)),
        ("2.0.0", (1, 4)),
        ("2.3.4", (1, 4)),
        ("2.99.0", None),
        ("3.0", None),
        ("", None),
        ("dev", None),
    ],
)
def test_what_a_containerd_writes_is_known_or_not(containerd: str, database: tuple[int, int] | None) -> None:
    assert releases.containerd_database(containerd) == database


@pytest.mark.parametrize(
    ("database", "name"),
    [
        ((1, 3), "containerd 1.7"),
        ((1, 4), "containerd 2.0"),
        ((1, 5), "a containerd later than 2.3"),
        ((2, 0), "a containerd later than 2.3"),
    ],
)
def test_who_writes_such_a_database(database: tuple[int, int], name: str) -> None:
    assert releases.first_containerd(database) == name
