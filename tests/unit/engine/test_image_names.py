"""Names of images, as people write them and as stores keep them."""

from __future__ import annotations

import pytest

from cachedind.engine.image_names import canonical, familiar, is_name


@pytest.mark.parametrize(
    ("name", "full", "short"),
    [
        ("redis", "docker.io/library/redis:latest", "redis:latest"),
        ("redis:7", "docker.io/library/redis:7", "redis:7"),
        ("docker.io/redis:7", "docker.io/library/redis:7", "redis:7"),
        ("index.docker.io/library/redis:7", "docker.io/library/redis:7", "redis:7"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest", "bitnami/redis:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("ci:5000/app", "ci:5000/app:latest", "ci:5000/app:latest"),
        ("registry.example.com/ci/app:1.0", "registry.example.com/ci/app:1.0", "registry.example.com/ci/app:1.0"),
    ],
)
def test_a_name_in_full_and_back(name: str, full: str, short: str) -> None:
    assert canonical(name) == full
    assert canonical(full) == full
    assert familiar(full) == short
    assert is_name(full)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "UPPER",
        "a//b",
        "../etc",
        "redis:" + "t" * 129,
        "redis:-t",
        "redis@sha256:" + "0" * 64,
        "r" * 300,
        "a b",
        "a\nb",
        "redis:\u00e9",
    ],
)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(canonical(name))
