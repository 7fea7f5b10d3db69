"""The bolt files that an engine opens: what goes with each, and what an engine wants to find in it.

    BuildKit     metadata_v2.db  _main/<record>/<field>: JSON, or nothing (cache/metadata/metadata.go)
                 cache.db        _result/<key>/<result>: JSON (solver/bboltcachestorage/storage.go)
    dockerd      volumes/metadata.db  volumes/<name>: JSON (moby, volume/service/db.go)
                 local-kv.db     libnetwork/<path>: a number of eight bytes, and JSON (moby, libnetwork's boltdb.go)
    containerd   createdat and updatedat, wherever they are: Go's time.Time.MarshalBinary (core/metadata/boltutil)

One such value with one other bit, and dockerd ends: "error creating buildkit instance: invalid character 'e' looking
for beginning of value".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cachedind import bolt_check, engine_paths, state
from cachedind.model import ImageStore, Loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cachedind.bolt_check import Judge
    from cachedind.model import StoragePlan

_BUILDERS_META = "buildkit/containerdmeta.db"
BUILDERS_SNAPSHOTS = "buildkit/snapshots.db"
"""Which layer a record of the build cache is, with graph drivers."""

_FIELDS = {
    "network": ("name", "id", "networkType", "enableIPv6"),
    "bridge": (
        "ID",
        "BridgeName",
        "DefaultBindingIP",
        "DefaultBridge",
        "DefaultGatewayIPv4",
        "DefaultGatewayIPv6",
        "EnableICC",
        "EnableIPMasquerade",
        "EnableIPv6",
        "Mtu",
    ),
    "endpoint": ("name", "id", "ep_iface"),
    "bridge-endpoint": ("id", "nid", "SrcName"),
    "endpoint_count": (),
    "sandbox": (),
}
"""By the kind of a record in local-kv.db."""
_PLACE = ("docker/network/v1.0",)
_TIMES = (b"createdat", b"updatedat")
_TIME_BYTES = {1: 15, 2: 16}
"""By the first byte, the version (Go, time/time.go)."""


class Database(NamedTuple):
    """What goes with a database, the buckets of which it has one at least if it has any, and who knows its values."""

    loss: Loss
    buckets: frozenset[bytes] = frozenset()
    judge: Judge | None = None


def known(storage: StoragePlan) -> dict[str, Database]:
    """Every database that an engine with this store opens, by its path in the data-root."""
    of_containerd = storage.store is ImageStore.CONTAINERD
    history = Database(Loss.RECORDS, frozenset({b"_records", b"_version"}))
    metadata = Database(Loss.CACHE, frozenset({b"_main", b"_index", b"_external"}), _judge_metadata)
    found = {
        "buildkit/cache.db": Database(
            Loss.CACHE, frozenset({b"_result", b"_links", b"_byresult", b"_backlinks"}), _judge_results
        ),
        "buildkit/history.db": history,
        "buildkit/history_c8d.db": history,
        "volumes/metadata.db": Database(Loss.RECORDS, frozenset({b"volumes"}), _judge_volumes),
        "network/files/local-kv.db": Database(Loss.RECORDS, frozenset({b"libnetwork"}), _Networks()),
        "content/metadata.db": _of_containerd(Loss.NOTHING),
        # Graph drivers keep neither images nor build cache in containerd.
        engine_paths.META: _of_containerd(Loss.IMAGES if of_containerd else Loss.NOTHING),
    }
    found[builders_metadata(storage)] = metadata
    if of_containerd:
        found[engine_paths.snapshots_database(storage.driver)] = _of_containerd(Loss.IMAGES)
    else:
        found[BUILDERS_SNAPSHOTS] = Database(Loss.CACHE)
        found[_BUILDERS_META] = _of_containerd(Loss.CACHE)
    return found


def builders_metadata(storage: StoragePlan) -> str:
    """BuildKit's records of its build cache."""
    worker = f"containerd-{storage.driver}/" if storage.store is ImageStore.CONTAINERD else ""
    return f"buildkit/{worker}metadata_v2.db"


def builders_leases(storage: StoragePlan) -> str:
    """Where BuildKit has its leases: with graph drivers it brings containerd's metadata store along."""
    return engine_paths.META if storage.store is ImageStore.CONTAINERD else _BUILDERS_META


def check(fd: int, database: Database, limit_bytes: int, takes: Sequence[Judge] = ()) -> bool:
    """Whether the database in an open file could be used by its engine, as far as it has no more than so many bytes:
    false when there is more of it. What is in it is also shown to `takes`, which raise nothing.

    Raises ValueError, and OSError when it cannot be read.
    """
    judges = [*([database.judge] if database.judge is not None else []), *takes]
    found = bolt_check.check(fd, limit_bytes, _all_of(judges))
    if found.buckets and database.buckets and found.buckets.isdisjoint(database.buckets):
        raise ValueError(f"it is another database, with a bucket {min(found.buckets).decode('ascii', 'replace')!r}")
    return found.complete


def _all_of(judges: list[Judge]) -> Judge | None:
    if len(judges) < 2:
        return judges[0] if judges else None

    def judge(path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        for one in judges:
            one(path, key, value)

    return judge


def _of_containerd(loss: Loss) -> Database:
    return Database(loss, frozenset({b"v1"}), _judge_times)


def _judge_metadata(path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
    if value and path[:1] == (b"_main",):
        _parse(key, value)


def _judge_results(path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
    if path[:1] == (b"_result",):
        _parse(key, value)


def _judge_volumes(_path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
    _parse(key, value)


class _Networks:
    """dockerd panics of a record that lacks one of _FIELDS; of others it does not (each was tried, 26.1 and 28.5). Of a
    network whose other records have another name it does as well, or starts no container in it: "Key not found in
    store"."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {"bridge": set(), "endpoint_count": set()}

    def __call__(self, _path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
        record = _parse(key, value[8:])
        place = key.decode("ascii", "replace").rstrip("/").split("/")
        if len(place) < 5:
            return
        kind, name = place[3], place[-1]
        for known, one in ((_PLACE, "/".join(place[:3])), (_FIELDS, kind)):
            if one not in known and (other := _one_bit_away(one, known)):
                raise ValueError(f"a key that begins with {one!r} instead of {other!r}")
        for field in _FIELDS.get(kind, ()):
            if field not in record and (other := _one_bit_away(field, record)):
                raise ValueError(f"what {_shown(key)} has calls its {field} {other!r}")
        if record.get("ID" if kind == "bridge" else "id", name) != name:
            raise ValueError(f"{_shown(key)} has another one's record")
        if kind in self._names:
            self._names[kind].add(name)
        elif kind == "network":
            for names in self._names.values():
                if name not in names and (other := _one_bit_away(name, names)):
                    raise ValueError(f"records of one network are {name!r} and {other!r}")


def _one_bit_away(name: str, others: Iterable[str]) -> str:
    """An engine may write other fields one day; such names it will not."""
    for other in others:
        if len(other) == len(name):
            differ = [ord(one) ^ ord(two) for one, two in zip(name, other, strict=True) if one != two]
            if len(differ) == 1 and differ[0].bit_count() == 1:
                return other
    return ""


def _judge_times(path: tuple[bytes, ...], key: bytes, value: bytes) -> None:
    if key in _TIMES and path[-1:] != (b"labels",) and (not value or _TIME_BYTES.get(value[0]) != len(value)):
        raise ValueError(f"{key.decode()} is no time")


def _parse(key: bytes, value: bytes) -> dict[str, object]:
    try:
        return state.parse_object(value)
    except ValueError as error:
        raise ValueError(f"what {_shown(key)} has is no JSON: {error}") from None


def _shown(key: bytes) -> str:
    return repr(key.decode("ascii", "replace")[:100])
