"""What is decided by an engine's release, all of it: which ones the tests run, and what each does by itself. Pure.

Nothing else compares releases but for their order: an older engine does not get a newer one's data.
"""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.base.model import EngineVersion

TESTED = frozenset({(26, 1), (28, 5)})
"""The releases that the tests run. Others may keep their files elsewhere, so they get plain checks."""

API_VERSION = "1.44"
"""The version of the API that daemons of our own are asked in: engines from 25.0 on know it. In its own newest one an
engine may answer otherwise (1.52 has other fields in GET /system/df; moby, api/docs/CHANGELOG.md)."""

FIRST_WITH_CONTAINERD_STORE = (24, 0)

_CONTAINERD_DATABASES = {(1, 7): (1, 3), (2, 0): (1, 4), (2, 1): (1, 4), (2, 2): (1, 4), (2, 3): (1, 4)}
"""Schema and version of the database that each containerd writes (containerd, core/metadata/db.go, of each release's
branch). What is not listed is not known."""


def are_tested(engines: Sequence[EngineVersion | None]) -> bool:
    """Whether the tests run all of these. None, an unknown one, is not tested; of none at all nothing is known."""
    return bool(engines) and all(engine is not None and engine.release in TESTED for engine in engines)


def name_tested() -> str:
    """The releases that the tests run, for people: "26.1, 28.5"."""
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(TESTED))


def has_containerd_store(engine: EngineVersion) -> bool:
    return engine.release >= FIRST_WITH_CONTAINERD_STORE


def prefers_containerd_store(engine: EngineVersion) -> bool:
    """Whether the containerd store is what the engine takes on an empty data-root (moby,
    daemon/image_store_choice.go)."""
    return engine.major >= 29


def has_max_used_space(engine: EngineVersion) -> bool:
    """Whether builder.gc has maxUsedSpace, reservedSpace and minFreeSpace, instead of keepStorage alone."""
    return engine.major >= 28


# ---- containerd ------------------------------------------------------------------------------------------------------


def containerd_database(containerd: str) -> tuple[int, int] | None:
    """What a containerd ("1.7.24") writes and reads; None where that is not known."""
    major, _, rest = containerd.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdecimal() and minor.isdecimal()):
        return None
    return _CONTAINERD_DATABASES.get((int(major), int(minor)))


def may_be_newer(database: tuple[int, int], engine: EngineVersion) -> bool:
    """Whether an engine that writes such a database may be a newer release than this one: Docker's have had it since
    29.0, Debian's since 28.5."""
    return database >= _CONTAINERD_DATABASES[2, 0] and engine.major < 29


def first_containerd(database: tuple[int, int]) -> str:
    """Which containerd, the first of them, writes such a database, for people: "containerd 2.0"."""
    known = [release for release, writes in sorted(_CONTAINERD_DATABASES.items()) if writes >= database]
    if not known:
        return "a containerd later than {}.{}".format(*max(_CONTAINERD_DATABASES))
    return "containerd {}.{}".format(*known[0])
