"""Settings: every variable, and every complaint at once."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.base.errors import SettingsError
from cachedind.base.log import Level
from cachedind.base.model import ImageStore
from cachedind.base.trace import POINTS
from cachedind.settings.config import load
from cachedind.settings.variables import VARIABLES, Variable


def test_defaults() -> None:
    settings = load({})
    assert settings.lock_timeout_s == 10
    assert settings.image_store is None
    assert settings.storage_driver is None
    assert (settings.allow_vfs, settings.allow_network_fs, settings.strict, settings.log_json) == (False,) * 4
    assert not settings.allow_ephemeral_pool
    assert settings.log_level is Level.INFO
    assert settings.iptables_legacy is None
    assert (settings.docker_host, settings.tls_certdir, settings.tls_san, settings.docker_driver) == ("",) * 4
    assert settings.pool is None
    limits = (settings.pool_max_bytes, settings.pool_min_free_bytes, settings.cache_max_bytes, settings.max_age_s)
    assert limits == (None,) * 4
    assert (settings.key, settings.key_is_said) == ("default", False)
    assert (settings.fallback_keys, settings.read_only) == ((), False)
    assert (settings.keep, settings.kill_at) == (frozenset(), "")
    assert settings.seed is None, "which is /seeds, if there is such a directory"
    assert (settings.seed_host, settings.seed_host_certs, settings.seed_images) == ("", "", ())
    assert settings.seed_after is False


def test_every_variable_is_read() -> None:
    settings = load(
        {
            "CACHEDIND_LOCK_TIMEOUT": "2m",
            "CACHEDIND_IMAGE_STORE": "containerd",
            "CACHEDIND_STORAGE_DRIVER": "native",
            "CACHEDIND_ALLOW_VFS": "1",
            "CACHEDIND_ALLOW_NETWORK_FS": "1",
            "CACHEDIND_ALLOW_EPHEMERAL_POOL": "1",
            "CACHEDIND_STRICT": "1",
            "CACHEDIND_LOG_FORMAT": "json",
            "CACHEDIND_LOG_LEVEL": "DEBUG",
            "CACHEDIND_POOL": "/srv/pool",
            "CACHEDIND_POOL_MAX_SIZE": "90GB",
            "CACHEDIND_POOL_MIN_FREE": "5GB",
            "CACHEDIND_CACHE_MAX_SIZE": "20GB",
            "CACHEDIND_MAX_AGE": "14d",
            "CACHEDIND_UNUSED_MAX_AGE": "3d",
            "CACHEDIND_KEY": "group/project",
            "CACHEDIND_SCOPE": "build image 2/3",
            "CACHEDIND_FALLBACK_KEYS": "main,default",
            "CACHEDIND_ACCESS": "ro",
            "CACHEDIND_KEEP": "volumes:db_*,networks",
            "CACHEDIND_SEED": "/seeds/*.tar, /images/base",
            "CACHEDIND_SEED_HOST": "tcp://host:2376",
            "CACHEDIND_SEED_HOST_CERT_PATH": "/certs/host",
            "CACHEDIND_SEED_IMAGES": "postgres:17, ci/*",
            "CACHEDIND_SEED_WHEN": "after",
            "CACHEDIND_KILL_AT": "clone.copied",
            "CACHEDIND_LISTEN": "127.0.0.1, [::1]:99",
            "DOCKER_HOST": "unix:///x",
            "DOCKER_TLS_CERTDIR": "/certs",
            "DOCKER_TLS_SAN": "DNS:x",
            "DOCKER_DRIVER": "vfs",
            "DOCKER_IPTABLES_LEGACY": "",
            "PATH": "/bin",
        }
    )
    assert settings._asdict() == {
        "lock_timeout_s": 120,
        "image_store": ImageStore.CONTAINERD,
        "storage_driver": "native",
        "allow_vfs": True,
        "allow_network_fs": True,
        "allow_ephemeral_pool": True,
        "strict": True,
        "log_json": True,
        "log_level": Level.DEBUG,
        "listen": (("127.0.0.1", None), ("::1", 99)),
        "docker_host": "unix:///x",
        "tls_certdir": "/certs",
        "tls_san": "DNS:x",
        "docker_driver": "vfs",
        "engine_stores": (),
        "iptables_legacy": "",
        "path": "/bin",
        "pool": "/srv/pool",
        "pool_max_bytes": 90 * 10**9,
        "pool_min_free_bytes": 5 * 10**9,
        "cache_max_bytes": 20 * 10**9,
        "max_age_s": 14 * 86400,
        "unused_max_age_s": 3 * 86400,
        "key": "group/project",
        "key_is_said": True,
        "scope": "build image",
        "fallback_keys": ("main", "default"),
        "read_only": True,
        "keep": frozenset({"volumes:db_*", "networks"}),
        "seed": ("/seeds/*.tar", "/images/base"),
        "seed_host": "tcp://host:2376",
        "seed_host_certs": "/certs/host",
        "seed_images": ("postgres:17", "ci/*"),
        "seed_after": True,
        "kill_at": "clone.copied",
        "unrelated": (),
    }


def test_an_empty_value_counts_as_not_set() -> None:
    empty = {f"CACHEDIND_{variable.name}": " " for variable in VARIABLES if not variable.empty_counts}
    assert load(empty) == load({})


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("", ()),
        (" ", ()),
        ("auto", None),
        ("/a.tar", ("/a.tar",)),
        ("/a.tar, /b/*.tar\n/a.tar,", ("/a.tar", "/b/*.tar")),
    ],
)
def test_seeds_are_paths_and_an_empty_list_is_none(text: str, seeds: tuple[str, ...] | None) -> None:
    assert load({"CACHEDIND_SEED": text}).seed == seeds


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SEED": "a.tar"}, "absolute paths"),
        ({"SEED": "/a\0b"}, "absolute paths"),
        ({"SEED_HOST": "unix:///host/docker.sock"}, "SEED_HOST and CACHEDIND_SEED_IMAGES need each other"),
        ({"SEED_IMAGES": "redis"}, "SEED_HOST and CACHEDIND_SEED_IMAGES need each other"),
        ({"SEED_HOST": "unix:///var/run/docker.sock", "SEED_IMAGES": "redis"}, "that path is this daemon's own"),
        ({"SEED_HOST": "unix:///run//docker.sock", "SEED_IMAGES": "redis"}, "that path is this daemon's own"),
        ({"SEED_HOST": "ssh://host", "SEED_IMAGES": "redis"}, "a docker host such as"),
        ({"SEED_HOST": "tcp://host", "SEED_IMAGES": "redis"}, "a docker host such as"),
        ({"SEED_HOST_CERT_PATH": "certs"}, "an absolute path"),
        ({"SEED_WHEN": "later"}, "before or after"),
    ],
)
def test_settings_of_seeds_that_mean_nothing(environ: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load({f"CACHEDIND_{name}": value for name, value in environ.items()})


@pytest.mark.parametrize(
    ("text", "pool"),
    [
        ("", ""),
        (" ", ""),
        ("auto", None),
        ("/cachedind", "/cachedind"),
        (" /srv/pool/ ", "/srv/pool"),
        ("//srv//x/../pool", "/srv/pool"),
    ],
)
def test_pool_is_a_path_or_off_or_undecided(text: str, pool: str | None) -> None:
    assert load({"CACHEDIND_POOL": text}).pool == pool


@pytest.mark.parametrize("text", ["srv/pool", ".", "/", "//", "/srv/..", "~/pool", "0", "none"])
def test_what_is_no_pool(text: str) -> None:
    with pytest.raises(SettingsError, match="is not an absolute path such as /cachedind, auto, or empty for no pool"):
        load({"CACHEDIND_POOL": text})


CI_NAMES = ("CI_PROJECT_PATH", "GITHUB_REPOSITORY", "CI_REPO", "DRONE_REPO", "BUILDKITE_PIPELINE_SLUG")


@pytest.mark.parametrize("index", range(len(CI_NAMES)))
def test_key_is_the_first_project_name_of_the_ci(index: int) -> None:
    environ = {name: name.lower() if place >= index else " " for place, name in enumerate(CI_NAMES)}
    assert load(environ).key == CI_NAMES[index].lower()
    assert load({**environ, "CACHEDIND_KEY": " "}).key == CI_NAMES[index].lower()
    assert load({**environ, "CACHEDIND_KEY": " mine "}).key == "mine"
    assert load({**environ, "CACHEDIND_KEY": "default"}).key == "default"


@pytest.mark.parametrize("name", [*CI_NAMES, "CACHEDIND_KEY"])
def test_a_key_is_said_by_whoever_names_it_also_the_default_one(name: str) -> None:
    assert load({name: "default"}).key_is_said
    assert not load({name: " "}).key_is_said
    assert not load({"CACHEDIND_SCOPE": "x", "CI_JOB_NAME": "x", "CACHEDIND_FALLBACK_KEYS": "x"}).key_is_said


@pytest.mark.parametrize(
    ("environ", "scope"),
    [
        ({}, ""),
        ({"CI_JOB_NAME": "build"}, "build"),
        ({"CI_JOB_NAME": "build 1/3"}, "build"),
        ({"CI_JOB_NAME": "build 12/12", "GITHUB_JOB": "x"}, "build"),
        ({"CI_JOB_NAME": "build: [linux, amd64]"}, "build: [linux, amd64]"),
        ({"CI_JOB_NAME": "test/unit"}, "test/unit"),
        ({"CI_JOB_NAME": "python 3.12"}, "python 3.12"),
        ({"CI_JOB_NAME": "v1/2 3/4"}, "v1/2"),
        ({"GITHUB_JOB": "docker"}, "docker"),
        ({"CI_WORKFLOW_NAME": "release", "CI_STEP_NAME": "image"}, "release/image"),
        ({"CI_WORKFLOW_NAME": "release"}, "release"),
        ({"CI_STEP_NAME": "image"}, ""),
        ({"DRONE_STAGE_NAME": "arm"}, "arm"),
        ({"BUILDKITE_STEP_KEY": "bk"}, "bk"),
        ({"CACHEDIND_SCOPE": "mine", "CI_JOB_NAME": "build"}, "mine"),
        ({"CACHEDIND_SCOPE": "", "CI_JOB_NAME": "build"}, "build"),
    ],
)
def test_scope_is_the_jobs_name_without_its_part_of_many(environ: dict[str, str], scope: str) -> None:
    assert load(environ).scope == scope


def test_fallback_keys_are_told_apart_by_commas_and_line_ends() -> None:
    text = " main ,, a b\nGroup/Project\n\nmain,own,default,"
    assert load({"CACHEDIND_FALLBACK_KEYS": text, "CACHEDIND_KEY": "own"}).fallback_keys == (
        "main",
        "a b",
        "Group/Project",
        "default",
    )
    # The key that CACHEDIND_KEY did not name is the own one as well.
    assert load({"CACHEDIND_FALLBACK_KEYS": "main,default"}).fallback_keys == ("main",)
    assert load({"CACHEDIND_FALLBACK_KEYS": "main,g/p", "CI_PROJECT_PATH": "g/p"}).fallback_keys == ("main",)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", (("0.0.0.0", None),)),
        ("none", ()),
        ("127.0.0.1:2400", (("127.0.0.1", 2400),)),
        ("::1", (("::1", None),)),
        ("[::1]", (("::1", None),)),
        ("fd00::5,10.0.0.1", (("fd00::5", None), ("10.0.0.1", None))),
    ],
)
def test_where_to_listen(text: str, where: tuple[tuple[str, int | None], ...]) -> None:
    assert load({"CACHEDIND_LISTEN": text}).listen == where


@pytest.mark.parametrize(
    "text",
    ["off", "localhost", "127.0.0.1:", "127.0.0.1:0", "::1:70000:", "300.0.0.1", "[::1", "1:2:3", "none,::1", ","],
)
def test_nowhere_to_listen(text: str) -> None:
    with pytest.raises(SettingsError, match=r"CACHEDIND_LISTEN=.* is not none, or IP addresses"):
        load({"CACHEDIND_LISTEN": text})


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("all", frozenset({"containers", "networks", "volumes", "images"})),
        ("none", frozenset[str]()),
        ("volumes", frozenset({"volumes"})),
        (" containers , networks,containers", frozenset({"containers", "networks"})),
        ("images", frozenset({"images"})),
        (
            "volumes:buildx_buildkit_ci0_state, images,volumes:db-[0-9]?.*",
            frozenset({"images", "volumes:buildx_buildkit_ci0_state", "volumes:db-[0-9]?.*"}),
        ),
        ("volumes,volumes:*", frozenset({"volumes", "volumes:*"})),
    ],
)
def test_keep(text: str, kinds: frozenset[str]) -> None:
    assert load({"CACHEDIND_KEEP": text}).keep == kinds


@pytest.mark.parametrize(
    "text",
    [
        *("image", "volumes,all", "volumes,", ",", "volume", "volumes networks", "all,volumes:x"),
        *(
            "volumes:",
            "volumes: x",
            "volumes:a/b",
            "volumes:a b",
            "volumes:../x/*",
            "volumes:ü",
            "images:x",
            "networks:*",
        ),
    ],
)
def test_what_cannot_be_kept(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"CACHEDIND_KEEP": text})
    kinds = "a list of containers, networks, volumes, images and volumes:PATTERN separated by commas, or all or none"
    assert caught.value.cause == f"CACHEDIND_KEEP={text!r} is not {kinds}"


@pytest.mark.parametrize("name", ["POOL_MAX_SIZE", "MAX_AGE"])
def test_a_limit_may_be_named_as_none(name: str) -> None:
    assert load({f"CACHEDIND_{name}": "none"}) == load({})


def test_zero_is_refused_where_it_could_mean_everything_or_nothing() -> None:
    """The one that has a single meaning is accepted."""
    assert load({"CACHEDIND_POOL_MIN_FREE": "0"}).pool_min_free_bytes == 0
    assert load({"CACHEDIND_POOL_MIN_FREE": "none"}).pool_min_free_bytes == 0
    assert load({"CACHEDIND_POOL_MIN_FREE": "auto"}).pool_min_free_bytes is None
    with pytest.raises(SettingsError) as caught:
        load({f"CACHEDIND_{name}": "0" for name in ("POOL_MAX_SIZE", "CACHE_MAX_SIZE", "MAX_AGE")})
    assert caught.value.cause.count("='0' is not above zero; to set nothing, say ") == 3


@pytest.mark.parametrize("point", POINTS)
def test_each_step_can_be_died_at(point: str) -> None:
    assert load({"CACHEDIND_KILL_AT": point}).kill_at == point


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            {
                "CACHEDIND_LOCK_TIMEOUT": "soon",
                "CACHEDIND_STORAGE_DRIVER": "aufs",
                "CACHEDIND_IMAGE_STORE": "podman",
                "CACHEDIND_LOG_LEVEL": "loud",
                "CACHEDIND_LOG_FORMAT": "xml",
                "CACHEDIND_STRICT": "perhaps",
                "CACHEDIND_POOL": "pool",
                "CACHEDIND_POOL_MAX_SIZE": "big",
                "CACHEDIND_ACCESS": "rwx",
                "CACHEDIND_KILL_AT": "dawn",
                "CACHEDIND_ALLOW_VSF": "1",
                "CACHEDIND_SEEDS": "/seeds",
            }
        )
    assert caught.value.exit_code == 64
    complaints = caught.value.cause.split("; ")
    assert len(complaints) == 12
    assert "CACHEDIND_LOCK_TIMEOUT='soon' is not a time such as 30s, 5m or 14d" in complaints
    assert "CACHEDIND_ALLOW_VSF is not a variable of cachedind, did you mean CACHEDIND_ALLOW_VFS?" in complaints
    assert "CACHEDIND_SEEDS is not a variable of cachedind, did you mean CACHEDIND_SEED?" in complaints


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("POOl", "POOL"),
        ("POOLS", "POOL"),
        ("SEEDS", "SEED"),
        ("KEYS", "KEY"),
        ("_KEY", "KEY"),
        ("FALLBACK_KEY", "FALLBACK_KEYS"),
        ("CACHE_SIZE", "CACHE_MAX_SIZE"),
        ("CACHE_MAXSIZE", "CACHE_MAX_SIZE"),
        ("MAX_SIZE", "POOL_MAX_SIZE"),
        ("ALLOW_VSF", "ALLOW_VFS"),
        ("LOCKTIMEOUT", "LOCK_TIMEOUT"),
        ("STORAGE_DRIVERS", "STORAGE_DRIVER"),
        ("IMAGESTORE", "IMAGE_STORE"),
        ("SEED_IMAGE", "SEED_IMAGES"),
        ("LOGLEVEL", "LOG_LEVEL"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({f"CACHEDIND_{name}": "1"})
    assert caught.value.cause == f"CACHEDIND_{name} is not a variable of cachedind, did you mean CACHEDIND_{meant}?"


@pytest.mark.parametrize(
    "name",
    [
        "IMAGE", "IMAGES", "IMAGE_TAG", "VERSION", "TAG", "REGISTRY", "DIGEST", "REPO", "URL", "TOKEN", "BRANCH", "REF",
        "CONFIG", "DIR", "HOST", "RUNNER", "TEST", "TOOL", "QQQ", "BASE_IMAGE", "BUILD_IMAGE", "DOCKER_IMAGE",
    ],
)  # fmt: skip
def test_a_projects_own_names_are_its_own(name: str) -> None:
    assert load({f"CACHEDIND_{name}": "1", "CACHEDIND_KEY": "mine"}).unrelated == (f"CACHEDIND_{name}",)


@pytest.mark.parametrize("driver", ["vfs", "native"])
def test_a_copying_driver_needs_permission_even_when_it_is_named(driver: str) -> None:
    with pytest.raises(SettingsError, match=f"CACHEDIND_STORAGE_DRIVER={driver} also needs CACHEDIND_ALLOW_VFS=1"):
        load({"CACHEDIND_STORAGE_DRIVER": driver})
    assert load({"CACHEDIND_STORAGE_DRIVER": driver, "CACHEDIND_ALLOW_VFS": "1"}).storage_driver == driver


@pytest.mark.parametrize(
    "name",
    [
        "CACHEDIND_SERVICE_HOST",
        "CACHEDIND_SERVICE_PORT",
        "CACHEDIND_SERVICE_PORT_TLS",
        "CACHEDIND_PORT",
        "CACHEDIND_PORT_2376_TCP",
        "CACHEDIND_PORT_2376_TCP_ADDR",
        "CACHEDIND_PORT_53_UDP_PROTO",
        "CACHEDIND_NAME",
        "CACHEDIND_ENV_PATH",
    ],
)
def test_what_kubernetes_and_links_set_for_something_named_cachedind_is_not_ours(name: str) -> None:
    assert load({name: "tcp://10.0.0.1:2376"}) == load({})


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_each_default_is_a_value_that_it_accepts(variable: Variable) -> None:
    load({f"CACHEDIND_{variable.name}": variable.default})


NAMES = [f"CACHEDIND_{variable.name}" for variable in VARIABLES] + [
    *("DOCKER_HOST", "DOCKER_TLS_CERTDIR", "DOCKER_TLS_SAN", "DOCKER_DRIVER", "DOCKER_IPTABLES_LEGACY", "PATH"),
    *("CI_PROJECT_PATH", "CACHEDIND_PORT", "CACHEDIND_STORAGE"),
]
# What a process can have: no NUL, and bytes that are no UTF-8 as surrogates.
VALUES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40)
VALUES |= st.sampled_from(["1", "0", "auto", "none", "10GB", "-1", "1e999", "0x10", "٣", "ro", "vfs", "\udcff", " "])


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_environment_is_settings_or_one_complaint(environ: dict[str, str]) -> None:
    settings, complaint = None, ""
    try:
        settings = load(environ)
    except SettingsError as error:
        complaint = error.cause.split(" also needs ")[0]
    assert all(name in environ for name in re.findall(r"(CACHEDIND_\w+)=", complaint))
    if settings is not None:
        assert settings.lock_timeout_s >= 0
        assert settings.key not in settings.fallback_keys
