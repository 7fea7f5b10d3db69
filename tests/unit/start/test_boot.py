"""The steps of a start, as far as they act on nothing but a directory. Whole starts are tested in tests/image."""

from __future__ import annotations

import pytest

from cachedind.api import listeners
from cachedind.base.errors import CachedindError, DaemonConfigError, SettingsError
from cachedind.settings import daemon_json
from cachedind.start import boot


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        (["--version"], ["dockerd", "--version"]),
        (["dockerd", "--help"], ["dockerd", "--help"]),
        (["-D", "-v"], ["dockerd", "-D", "-v"]),
        (["dockerd", "--validate", "--config-file=/x"], ["dockerd", "--validate", "--config-file=/x"]),
    ],
)
def test_questions_go_to_dockerd_untouched(executed: type[Exception], words: list[str], argv: list[str]) -> None:
    environ = {"PATH": "/bin", "DOCKER_DRIVER": "vfs", "CACHEDIND_STRICT": "perhaps"}
    with pytest.raises(executed) as caught:
        boot.boot(words, environ)
    assert caught.value.args == (argv, environ)


@pytest.mark.parametrize(
    ("words", "environ", "error"),
    [
        ([], {"CACHEDIND_STRICT": "perhaps"}, SettingsError),
        (["--data-root"], {}, DaemonConfigError),
        ([], {"DOCKER_HOST": "unix://relative.sock"}, DaemonConfigError),
    ],
)
def test_what_cannot_be_understood_ends_the_start_before_anything_is_bound(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environ: dict[str, str], error: type[CachedindError]
) -> None:
    monkeypatch.setattr(listeners, "Api", lambda plan: pytest.fail("bound"))
    monkeypatch.setattr(daemon_json, "DEFAULT_CONFIG_FILE", "/no-such/daemon.json")
    with pytest.raises(error):
        boot.boot(words, environ)


def test_dind_without_a_command() -> None:
    with pytest.raises(SettingsError, match="no command"):
        boot.dind([], {})
