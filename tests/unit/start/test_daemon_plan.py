"""What dockerd gets: the user's file and flags merged with ours, no directive twice because of us."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.api import listen_plan
from cachedind.api.listen_plan import ListenPlan
from cachedind.base.errors import DaemonConfigError
from cachedind.base.model import EngineVersion, ImageStore, StoragePlan
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.settings.build_cache import CacheLimit, plan_gc
from cachedind.settings.daemon_json import (
    CONTAINERD_FEATURE,
    DaemonSettings,
    parse_daemon_json,
)
from cachedind.start.daemon_plan import DaemonPlan, describe, plan_daemon
from helpers.daemon_settings import settings_of

PLAIN = listen_plan.plan_listen("", "", None)
TLS = listen_plan.plan_listen("", "/certs", None)
OVERLAY2 = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
OVERLAYFS = StoragePlan(ImageStore.CONTAINERD, "overlayfs", "")
ENGINE = EngineVersion(28, 5, 2)
SERVER = listen_plan.SERVER_SET
MERGED = "/run/cachedind/daemon.json"
TLS_FLAGS = (
    "--tlsverify --tlscacert /run/cachedind/tls/ca.pem --tlscert /run/cachedind/tls/cert.pem "
    "--tlskey /run/cachedind/tls/key.pem"
)


@pytest.mark.parametrize(
    ("settings", "storage", "listen", "arguments", "merged"),
    [
        pytest.param(
            settings_of(),
            OVERLAY2,
            PLAIN,
            "--host fd:// --storage-driver overlay2",
            {},
            id="nothing of the user's, plain",
        ),
        pytest.param(
            settings_of(),
            OVERLAYFS,
            TLS,
            f"--host fd:// {TLS_FLAGS} --storage-driver overlayfs",
            {"features": {CONTAINERD_FEATURE: True}},
            id="nothing of the user's, TLS, containerd store",
        ),
        pytest.param(
            settings_of("-D --mtu 1400 -- rest"),
            OVERLAY2,
            PLAIN,
            "--host fd:// --storage-driver overlay2 -D --mtu 1400 -- rest",
            {},
            id="the user's flags come last",
        ),
        pytest.param(
            settings_of("-s btrfs"),
            StoragePlan(ImageStore.GRAPHDRIVER, "btrfs", ""),
            PLAIN,
            "--host fd:// -s btrfs",
            {},
            id="the user's driver flag is the only one",
        ),
        pytest.param(
            settings_of(storage_driver="overlay2", dns=["1.1.1.1"]),
            OVERLAY2,
            PLAIN,
            "--host fd:// --storage-driver overlay2",
            {"dns": ["1.1.1.1"]},
            id="the file's driver moves to the flags",
        ),
        pytest.param(
            settings_of(features={"buildkit": True, CONTAINERD_FEATURE: False}),
            OVERLAY2,
            PLAIN,
            "--host fd:// --storage-driver overlay2",
            {"features": {"buildkit": True, CONTAINERD_FEATURE: False}},
            id="the file's other features stay",
        ),
        pytest.param(
            settings_of("--feature buildkit=true"),
            OVERLAYFS,
            PLAIN,
            f"--host fd:// --storage-driver overlayfs --feature {CONTAINERD_FEATURE}=true --feature buildkit=true",
            {},
            id="beside the user's --feature, ours is a flag too",
        ),
        pytest.param(
            settings_of(f"--feature {CONTAINERD_FEATURE}=true"),
            OVERLAYFS,
            PLAIN,
            f"--host fd:// --storage-driver overlayfs --feature {CONTAINERD_FEATURE}=true",
            {},
            id="the user's own choice of the store is not repeated",
        ),
        pytest.param(
            settings_of("-H tcp://0.0.0.0:2375 -H npipe://x", hosts=["unix:///var/run/docker.sock"]),
            OVERLAY2,
            PLAIN._replace(left=("npipe://x",)),
            "--host fd:// --host npipe://x --storage-driver overlay2",
            {},
            id="hosts are those that the plan says, of the file and of the flags",
        ),
        pytest.param(
            settings_of("-H fd://"),
            OVERLAY2,
            PLAIN._replace(bound=(), left=("fd://",)),
            "--host fd:// --storage-driver overlay2",
            {},
            id="nothing is bound here",
        ),
        pytest.param(
            settings_of("--config-file /mine.json", mtu=1400),
            OVERLAY2,
            PLAIN,
            "--host fd:// --storage-driver overlay2",
            {"mtu": 1400},
            id="the user's --config-file is in the merged one",
        ),
        pytest.param(
            settings_of(tlscert="/mine.pem", tlsverify=True),
            OVERLAY2,
            TLS,
            f"--host fd:// --tlscacert {SERVER}/ca.pem --tlskey {SERVER}/key.pem --storage-driver overlay2",
            {"tlscert": "/mine.pem", "tlsverify": True},
            id="what the file says about TLS is not said again",
        ),
    ],
)
def test_plan_daemon(
    settings: DaemonSettings,
    storage: StoragePlan,
    listen: ListenPlan,
    arguments: str,
    merged: dict[str, object],
) -> None:
    before = json.dumps(settings.file)
    plan = plan_daemon(settings, storage, listen, MERGED, ENGINE)
    named = f"--config-file {settings.file_path} " if settings.arguments.has("config-file") else ""
    assert plan.is_merged is (merged != settings.file)
    assert " ".join(plan.arguments) == (f"--config-file {MERGED} " if plan.is_merged else named) + arguments
    assert json.loads(plan.file_text) == merged
    assert json.dumps(settings.file) == before, "the user's own directives were changed in place"


def test_an_engine_that_has_the_containerd_store_by_default_is_told_of_the_other() -> None:
    for engine, features in ((EngineVersion(28, 5, 2), None), (EngineVersion(29, 0, 0), {CONTAINERD_FEATURE: False})):
        plan = plan_daemon(settings_of(), OVERLAY2, PLAIN, MERGED, engine)
        assert json.loads(plan.file_text).get("features") == features


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        (OVERLAYFS._replace(beside_graph=False), False),
        (OVERLAYFS._replace(beside_graph=True), True),
        (StoragePlan(ImageStore.CONTAINERD, "native", "", beside_graph=False), False),
        (StoragePlan(ImageStore.CONTAINERD, "btrfs", "", beside_graph=False), True),
    ],
    ids=["as by default", "a graph driver's directory would win", "native", "both stores have a driver of that name"],
)
def test_an_engine_is_told_of_its_own_default_only_where_it_would_choose_otherwise(
    storage: StoragePlan, told: bool
) -> None:
    """It says in its log that the feature needs not be set, and a file that we need not add to is read by dockerd."""
    plan = plan_daemon(settings_of(), storage, PLAIN, MERGED, EngineVersion(29, 7, 2))
    assert json.loads(plan.file_text) == ({"features": {CONTAINERD_FEATURE: True}} if told else {})
    assert plan.is_merged is told


# ---- the build cache's limit -----------------------------------------------------------------------------------

LIMIT = CacheLimit(10**10, EngineVersion(28, 5, 2), requested=True)


@pytest.mark.parametrize("builder", [None, {}, {"entitlements": {"network-host": True}, "history": {"maxEntries": 5}}])
def test_limit_goes_beside_what_else_the_user_says_of_the_builder(builder: dict[str, object] | None) -> None:
    settings = settings_of() if builder is None else settings_of(builder=builder)
    before = json.dumps(settings.file)
    plan = plan_daemon(settings, OVERLAY2, PLAIN, MERGED, ENGINE, cache_limit=LIMIT)
    assert json.loads(plan.file_text)["builder"] == {**(builder or {}), "gc": plan_gc(LIMIT)}
    assert plan.degradations == ()
    assert json.dumps(settings.file) == before, "the user's own directives were changed in place"


@pytest.mark.parametrize(
    "builder", [{"gc": {"enabled": False}}, {"gc": {}}, {"gc": None}, {"GC": {"defaultKeepStorage": "1GB"}}]
)
def test_users_own_gc_stays_and_he_is_told_that_his_variable_does_nothing(builder: dict[str, object]) -> None:
    settings = settings_of(builder=builder)
    plan = plan_daemon(settings, OVERLAY2, PLAIN, MERGED, ENGINE, cache_limit=LIMIT)
    assert json.loads(plan.file_text)["builder"] == builder
    assert [str(one) for one in plan.degradations] == [
        "CACHEDIND_CACHE_MAX_SIZE is ignored: /etc/docker/daemon.json sets builder.gc; the build cache grows as far as "
        "that lets it; take builder.gc out of the file, or leave CACHEDIND_CACHE_MAX_SIZE unset"
    ]
    # A pool's default is nothing that he asked for.
    plan = plan_daemon(settings, OVERLAY2, PLAIN, MERGED, ENGINE, cache_limit=LIMIT._replace(requested=False))
    assert json.loads(plan.file_text)["builder"] == builder
    assert plan.degradations == ()


def test_users_rules_are_in_the_engines_words_and_what_it_lacks_is_named() -> None:
    gc = {"enabled": True, "defaultReservedSpace": "5GB", "defaultMinFreeSpace": "1GB"}
    builder = {"entitlements": {"security-insecure": True}, "GC": gc}
    plan = plan_daemon(settings_of(builder=builder), OVERLAY2, PLAIN, MERGED, EngineVersion(26, 1, 5))
    expected = {**builder, "GC": {"enabled": True, "defaultKeepStorage": "5GB"}}
    assert json.loads(plan.file_text)["builder"] == expected
    [said] = plan.degradations
    assert said.what == "defaultMinFreeSpace in builder.gc is ignored"
    plan = plan_daemon(settings_of(builder=builder), OVERLAY2, PLAIN, MERGED, EngineVersion(28, 5, 2))
    assert json.loads(plan.file_text)["builder"] == builder
    assert plan.degradations == ()


def test_without_a_limit_nothing_is_said_of_the_builder() -> None:
    assert "builder" not in json.loads(plan_daemon(settings_of(), OVERLAY2, PLAIN, MERGED, ENGINE).file_text)
    builder = {"gc": {"enabled": True}}
    plan = plan_daemon(settings_of(builder=builder), OVERLAY2, PLAIN, MERGED, ENGINE)
    assert json.loads(plan.file_text)["builder"] == builder


def test_a_builder_that_is_no_object_is_named_before_dockerd_does() -> None:
    with pytest.raises(DaemonConfigError) as caught:
        parse_daemon_json('{"builder": []}', "f")
    assert (caught.value.cause, caught.value.hint) == ("f: builder is []", "it must be a JSON object")


# ---- whatever the user wrote -------------------------------------------------------------------------------------

# A flag's directive in daemon.json has the same name, but for these (moby, cmd/dockerd/config.go).
DIRECTIVE = {
    "host": "hosts",
    "feature": "features",
    "dns-opt": "dns-opts",
    "label": "labels",
    "storage-opt": "storage-opts",
}

FILES = st.fixed_dictionaries(
    {},
    optional={
        "hosts": st.lists(st.sampled_from(["fd://", "tcp://:2375", "tcp://h:1", "unix:///var/run/docker.sock"])),
        "storage-driver": st.sampled_from(["overlay2", "vfs", ""]),
        "features": st.dictionaries(st.sampled_from([CONTAINERD_FEATURE, "buildkit", "cdi"]), st.booleans()),
        "tls": st.booleans(),
        "tlsverify": st.booleans(),
        "tlscacert": st.just("/mine/ca.pem"),
        "tlscert": st.just("/mine/cert.pem"),
        "tlskey": st.just("/mine/key.pem"),
        "data-root": st.just("/data"),
        "mtu": st.integers(0, 9000),
        "labels": st.lists(st.text(max_size=3)),
        "group": st.text(max_size=5),
    },
)
FLAGS = st.lists(
    st.sampled_from(
        [
            "-D",
            "-H tcp://0.0.0.0:2375",
            "--host=unix:///x",
            "-s overlay2",
            "--storage-driver=overlay2",
            "--feature cdi=true",
            f"--feature={CONTAINERD_FEATURE}=true",
            "--tlsverify=false",
            "--tlscert /user.pem",
            "--config-file /mine.json",
            "--mtu=1",
            "--data-root /elsewhere",
        ]
    ),
    max_size=5,
)


def directives_of_flags(words: list[str]) -> set[str]:
    return {DIRECTIVE.get(flag.name, flag.name) for flag in parse_daemon_arguments(words).flags} - {"config-file"}


@given(FILES, FLAGS, st.sampled_from([OVERLAY2, OVERLAYFS]), st.sampled_from([PLAIN, TLS]))
def test_no_directive_stands_twice_because_of_us_and_none_of_the_users_is_lost(
    file: dict[str, object], flags: list[str], storage: StoragePlan, listen: ListenPlan
) -> None:
    words = " ".join(flags).split()
    settings = DaemonSettings(parse_daemon_arguments(words), file, "daemon.json")
    plan = plan_daemon(settings, storage, listen, MERGED, ENGINE)
    merged = json.loads(plan.file_text)

    # dockerd dies of a directive in both places; those that the user put in both are his own.
    users_own = directives_of_flags(words) & set(file)
    assert directives_of_flags(plan.arguments) & set(merged) <= users_own

    ours = {"hosts", "storage-driver", "features"}
    assert {name: merged[name] for name in set(merged) - ours} == {name: file[name] for name in set(file) - ours}
    kept = {flag for flag in settings.arguments.flags if flag.name not in ("host", "config-file")}
    assert kept <= set(parse_daemon_arguments(plan.arguments).flags)
    for name, value in dict(file.get("features", {})).items():  # type: ignore[call-overload]
        assert name == CONTAINERD_FEATURE or merged["features"][name] == value
    assert_store_is_said_once(plan, storage, settings)
    assert plan.arguments.count("--config-file") == (plan.is_merged or settings.arguments.has("config-file"))


def assert_store_is_said_once(plan: DaemonPlan, storage: StoragePlan, settings: DaemonSettings) -> None:
    in_file = json.loads(plan.file_text).get("features", {}).get(CONTAINERD_FEATURE)
    in_flags = [value for value in parse_daemon_arguments(plan.arguments).all("feature") if CONTAINERD_FEATURE in value]
    users = [value for value in settings.arguments.all("feature") if CONTAINERD_FEATURE in value]
    if users:
        assert in_flags == users
    elif settings.arguments.has("feature"):
        assert in_flags == [f"{CONTAINERD_FEATURE}={str(storage.store is ImageStore.CONTAINERD).lower()}"]
    elif storage.store is ImageStore.GRAPHDRIVER and CONTAINERD_FEATURE not in settings.file.get("features", {}):  # type: ignore[operator]
        assert not in_flags
        assert in_file is None, "the engine's default needs no word, for which the file would have to be merged"
    else:
        assert not in_flags
        assert in_file is (storage.store is ImageStore.CONTAINERD)


def test_describe_can_be_pasted() -> None:
    assert describe(["--label", "a b", "-D"]) == "--label 'a b' -D"
