"""What dockerd finally gets: its arguments, and its configuration file. Pure.

dockerd refuses to start when a directive stands both in its file and among its flags (moby,
daemon/config/config.go, findConfigurationConflicts). So nothing is added where the user already said something:
the user's file is read, merged with ours and written elsewhere; his own copy is never changed.
"""

from __future__ import annotations

import json

from cachedind.api import listen_plan
from cachedind.base import releases
from cachedind.base.model import GRAPH_DRIVERS, Degradation, ImageStore
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.settings import build_cache
from cachedind.settings.daemon_json import CONTAINERD_FEATURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.api.listen_plan import ListenPlan
    from cachedind.base.model import EngineVersion, StoragePlan
    from cachedind.settings.arguments import Flag
    from cachedind.settings.build_cache import CacheLimit
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def plan_listen(config: Config, settings: DaemonSettings, *, explicit: bool) -> ListenPlan:
    """Where the daemon listens: docker:dind's addresses and the user's more, or of `dockerd …` (explicit) just these.

    Raises DaemonConfigError.
    """
    group, hosts = settings.text("group"), [*settings.arguments.all("host"), *settings.file_hosts]
    if explicit:
        return listen_plan.plan_explicit(hosts, group, has_tls=settings.has_tls)
    host, certdir = config.docker_host, config.tls_certdir
    return listen_plan.plan_listen(host, certdir, group, config.listen, hosts, has_tls=settings.has_tls)


class FilePlan(NamedTuple):
    """What dockerd's configuration file must say, what has to be said by flags beside it, and whether the user's own
    file says just that."""

    text: str
    flags: list[str]
    is_users: bool
    degradations: tuple[Degradation, ...] = ()


class DaemonPlan(NamedTuple):
    """dockerd's final arguments (without the program's name), and its configuration file: a merged copy with this text,
    unless the user's own will do."""

    arguments: list[str]
    file_text: str
    is_merged: bool
    degradations: tuple[Degradation, ...] = ()


def plan_daemon(
    settings: DaemonSettings,
    storage: StoragePlan,
    listen: ListenPlan,
    merged_path: str,
    engine: EngineVersion,
    *,
    cache_limit: CacheLimit | None = None,
) -> DaemonPlan:
    """Put together what dockerd gets: our decisions first, the user's arguments last, no directive in both places.

    Without a `cache_limit` the build cache is the engine's and the user's business alone, in the words of
    the `engine`.
    """
    file = plan_file(settings, storage, engine, cache_limit)
    ours = _file_arguments(settings) if file.is_users else ["--config-file", merged_path]
    ours += _host_arguments(listen)
    ours += _tls_arguments(settings, listen)
    dropped = _replaced_flags(settings)
    if not settings.arguments.has("storage-driver"):
        ours += ["--storage-driver", storage.driver]
    words = ours + file.flags + settings.arguments.without(dropped).words
    return DaemonPlan(words, file.text, not file.is_users, file.degradations)


def plan_file(
    settings: DaemonSettings, storage: StoragePlan, engine: EngineVersion, cache_limit: CacheLimit | None
) -> FilePlan:
    """The user's directives, merged with ours, but for those that are flags."""
    merged = dict(settings.file)
    merged.pop("hosts", None)
    merged.pop("storage-driver", None)
    flags = _choose_store(settings, storage, engine, merged)
    degradations = () if cache_limit is None else _limit_build_cache(settings, cache_limit, merged)
    degradations += _translate_gc(settings, engine, merged)
    return FilePlan(json.dumps(merged, indent=2) + "\n", flags, merged == settings.file, degradations)


def _file_arguments(settings: DaemonSettings) -> list[str]:
    # The default one may be missing: dockerd must not be told to insist on it, and finds it by itself when it comes.
    return ["--config-file", settings.file_path] if settings.arguments.has("config-file") else []


def _host_arguments(listen: ListenPlan) -> list[str]:
    return [word for host in (*(["fd://"] if listen.bound else []), *listen.left) for word in ("--host", host)]


def _tls_arguments(settings: DaemonSettings, listen: ListenPlan) -> list[str]:
    if listen.tls_dir is None:
        return []
    server = listen_plan.SERVER_SET
    wanted = (
        ("tlsverify", ["--tlsverify"]),
        ("tlscacert", ["--tlscacert", f"{server}/ca.pem"]),
        ("tlscert", ["--tlscert", f"{server}/cert.pem"]),
        ("tlskey", ["--tlskey", f"{server}/key.pem"]),
    )
    return [word for directive, words in wanted if directive not in settings.file for word in words]


def _replaced_flags(settings: DaemonSettings) -> list[Flag]:
    # The file behind --config-file is in the merged one, and all hosts are in the plan of what is listened on.
    return [flag for flag in settings.arguments.flags if flag.name in ("config-file", "host")]


def _choose_store(
    settings: DaemonSettings, storage: StoragePlan, engine: EngineVersion, merged: dict[str, object]
) -> list[str]:
    """The store goes into the file, or beside the user's own --feature flags, which would conflict with it there.

    Nothing is said where it is the engine's default: a file that we need not add to can be read again by dockerd.
    """
    wanted = storage.store is ImageStore.CONTAINERD
    if settings.arguments.has("feature"):
        named = any(value.partition("=")[0] == CONTAINERD_FEATURE for value in settings.arguments.all("feature"))
        return [] if named else ["--feature", f"{CONTAINERD_FEATURE}={str(wanted).lower()}"]
    features = merged.get("features")
    is_said = isinstance(features, dict) and CONTAINERD_FEATURE in features
    if not is_said and _is_default(storage, engine):
        return []
    merged["features"] = {**(features if isinstance(features, dict) else {}), CONTAINERD_FEATURE: wanted}
    return []


def _is_default(storage: StoragePlan, engine: EngineVersion) -> bool:
    """Whether the engine chooses that store untold (moby, daemon/image_store_choice.go). From 29 on it does so by the
    driver's name, which may be one of both stores', and by what is in the data-root."""
    if not releases.prefers_containerd_store(engine):
        return storage.store is ImageStore.GRAPHDRIVER
    is_named = storage.store is ImageStore.CONTAINERD and storage.driver not in GRAPH_DRIVERS
    return is_named and not storage.beside_graph


def _limit_build_cache(
    settings: DaemonSettings, limit: CacheLimit, merged: dict[str, object]
) -> tuple[Degradation, ...]:
    """Add builder.gc, unless the user has one: his stays, and if he also set the variable, he is told."""
    builder = merged.get("builder")
    own = builder if isinstance(builder, dict) else {}
    # dockerd reads the names inside of a directive as Go reads JSON: in any case.
    if not any(name.lower() == "gc" for name in own):
        merged["builder"] = {**own, "gc": build_cache.plan_gc(limit)}
        return ()
    if not limit.requested:
        return ()
    ignored = Degradation(
        what=f"{build_cache.VARIABLE} is ignored",
        why=f"{settings.file_path} sets builder.gc",
        cost="the build cache grows as far as that lets it",
        mend=f"take builder.gc out of the file, or leave {build_cache.VARIABLE} unset",
    )
    return (ignored,)


def _translate_gc(
    settings: DaemonSettings, engine: EngineVersion, merged: dict[str, object]
) -> tuple[Degradation, ...]:
    builder = merged.get("builder")
    lost: list[str] = []
    for name, gc in list(builder.items()) if isinstance(builder, dict) else []:
        if name.lower() == "gc" and isinstance(gc, dict):
            translated, lost = build_cache.translate_gc(gc, engine)
            merged["builder"] = {**builder, name: translated}  # type: ignore[dict-item]
    if not lost:
        return ()
    ignored = Degradation(
        what=f"{', '.join(lost)} in builder.gc is ignored",
        why=f"engine {engine} has no such setting ({settings.file_path})",
        cost="the build cache does not shrink for what others need",
        mend=f"limit it by {build_cache.VARIABLE} or keepStorage, or use an image with engine 28 or later",
    )
    return (ignored,)


def describe(words: Sequence[str]) -> str:
    """A command line for people."""
    import shlex

    return shlex.join(words)
