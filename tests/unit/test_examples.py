"""examples/ and what the documentation quotes of them: keys that a GitLab runner knows, where it looks for them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cachedind.settings.config import load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/gitlab-ci/config.toml"
JOB = ROOT / "examples/gitlab-ci/.gitlab-ci.yml"
POOL_PAGE = ROOT / "docs/pool.md"

# gitlab-runner, common/config.go: the toml names of Config, RunnerConfig with RunnerCredentials and RunnerSettings,
# DockerConfig and Service, as far as our examples use them. A key in another place is dropped without a word.
KNOWN: dict[str, frozenset[str]] = {
    "": frozenset({"concurrent", "check_interval", "runners"}),
    "runners": frozenset({"name", "url", "token", "executor", "environment", "docker"}),
    "runners.docker": frozenset(
        {"image", "privileged", "services", "allowed_privileged_services", "volumes", "wait_for_services_timeout"}
    ),
    "runners.docker.services": frozenset({"name", "alias", "command", "entrypoint", "environment"}),
}


def keys_of(table: dict[str, Any], section: str = "") -> set[tuple[str, str]]:
    """Every key with the section it stands in."""
    found = {(section, key) for key in table}
    for key, value in table.items():
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict):
                found |= keys_of(below, f"{section}.{key}".lstrip("."))
    return found


def uncommented(text: str) -> str:
    """With the settings that are shown behind a #."""
    return re.sub(r"^(\s*)# (\w+ = )", r"\1\2", text, flags=re.MULTILINE)


def settings_of_runner(text: str) -> dict[str, str]:
    [runner] = tomllib.loads(uncommented(text))["runners"]
    return dict(entry.split("=", 1) for entry in runner["environment"])


def toml_blocks() -> list[str]:
    """The runner's configuration in the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)]
    assert blocks
    return blocks


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), *toml_blocks()])
def test_every_key_stands_where_the_runner_looks_for_it(text: str) -> None:
    for section, key in keys_of(tomllib.loads(uncommented(text))):
        assert key in KNOWN[section], f"{key} in [{section}]"


@pytest.mark.parametrize("text", [EXAMPLE.read_text(), *toml_blocks()])
def test_what_services_are_told_are_settings(text: str) -> None:
    settings = load(settings_of_runner(text))
    assert settings.unrelated == ()
    assert settings.pool_max_bytes == 100 * 10**9
    assert settings.max_age_s == 14 * 86400


@pytest.mark.parametrize("path", [JOB, POOL_PAGE], ids=lambda path: str(path.name))
def test_a_branch_begins_with_the_default_branches_cache_or_the_old_key(path: Path) -> None:
    """The key of a build of the default branch has to be the very text that other branches fall back to."""
    text = path.read_text()
    environ = dict(re.findall(r'(CACHEDIND_KEY|CACHEDIND_FALLBACK_KEYS): "(.*)"', text))

    def of(branch: str) -> tuple[str, tuple[str, ...]]:
        slug = re.sub(r"[^a-z0-9]", "-", branch.lower())
        variables = {
            "CI_PROJECT_PATH": "group/project",
            "CI_COMMIT_REF_NAME": branch,
            "CI_COMMIT_REF_SLUG": slug,
            "CI_DEFAULT_BRANCH": "release/Main",
        }
        expanded = {name: re.sub(r"\$(\w+)", lambda m: variables[m[1]], value) for name, value in environ.items()}
        found = load({**expanded, "CI_PROJECT_PATH": "group/project"})
        return found.key, found.fallback_keys

    own, _ = of("release/Main")
    key, fallbacks = of("feature/x")
    assert key not in (own, "group/project")
    assert fallbacks == (own, "group/project")
