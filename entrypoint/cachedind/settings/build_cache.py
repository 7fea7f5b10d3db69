"""How large the build cache may grow: dockerd's builder.gc, as each engine version spells it. Pure.

Sources: moby, builder/builder-next/controller.go (getGCPolicy, parseGCPolicy) and worker/gc.go (DefaultGCPolicy) of
v26.1.5, v28.0.0 and v28.5.2; buildkit, cache/manager.go (calculateKeepBytes, pruneOnce).

BuildKit leaves out of the sum, and keeps, what an image has too. In the containerd store it takes for such also all
layers that were built on an image which is there and that no image was made of, such as those of a first stage
(buildkit, snapshot/imagerefchecker: a layer without a blob adds nothing to its parent's name). The limit does not reach
these until that image is removed.
"""

from __future__ import annotations

from cachedind.base import releases
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cachedind.base.model import EngineVersion

VARIABLE = "CACHEDIND_CACHE_MAX_SIZE"

_POOL_SHARE = 4
_POOL_MINIMUM_BYTES = 2 << 30


class CacheLimit(NamedTuple):
    """How large the build cache may grow, under which engine, and whether the user asked for it."""

    max_bytes: int
    engine: EngineVersion
    requested: bool


def plan_limit(requested_bytes: int | None, pool_bytes: int | None, engine: EngineVersion) -> CacheLimit | None:
    """The limit that applies: the user's, else a pool's default, else None, the engine's own.

    `pool_bytes` is the size of the filesystem that the slots are on, free or not; None in direct mode.
    """
    if requested_bytes is not None:
        return CacheLimit(requested_bytes, engine, requested=True)
    return None if pool_bytes is None else CacheLimit(default_max_bytes(pool_bytes), engine, requested=False)


def default_max_bytes(pool_bytes: int) -> int:
    """What one slot's build cache may take of a pool's filesystem of this size: a quarter of it, 2 GiB at least.

    The engine's own defaults are shares of the whole filesystem and of what is free there. In a pool the other slots
    fill it too, and a slot would throw its cache away for their sake, which frees nothing that they have.
    """
    return max(pool_bytes // _POOL_SHARE, _POOL_MINIMUM_BYTES)


def plan_gc(limit: CacheLimit) -> dict[str, object]:
    """The value of builder.gc in a daemon.json.

    Sizes are plain numbers of bytes: what has a unit is read by units.RAMInBytes, for which 1GB is 2^30.
    """
    size = str(limit.max_bytes)
    if not releases.has_max_used_space(limit.engine):
        # Off unless enabled; with a size of its own, and rules that keep to it.
        return {"enabled": True, "defaultKeepStorage": size}
    # A list of rules replaces the engine's own. Those throw away, from 29.6 on, cache mounts that no build used for two
    # days, however much room there is: after a weekend they are gone. (Before, that rule asks for three types at once
    # and finds nothing.) Here every rule does nothing below the limit. Above it, first go sources, which are soon
    # fetched again, then cache mounts that no build used for two weeks, then the least recently used, and last what is
    # BuildKit's own. A rule has one value for each filter; two would be refused (errMultipleFilterValues).
    # A name that the engine does not know is no error to it, and a rule without a size throws everything away:
    # tests/image/test_build_cache_limit.py has the engines show what they make of this.
    return {
        "enabled": True,
        "policy": [
            {"filter": ["type=source.local", "unused-for=48h"], "maxUsedSpace": size},
            {"filter": ["type=source.git.checkout", "unused-for=48h"], "maxUsedSpace": size},
            {"filter": ["type=exec.cachemount", "unused-for=336h"], "maxUsedSpace": size},
            {"maxUsedSpace": size},
            {"all": True, "maxUsedSpace": size},
        ],
    }


# ---- the user's own builder.gc, for an engine that spells it differently ---------------------------------------------

_NEW_NAMES = ("maxusedspace", "reservedspace", "minfreespace")
_NO_COUNTERPART = "minfreespace"


def translate_gc(gc: dict[str, object], engine: EngineVersion) -> tuple[dict[str, object], list[str]]:
    """A builder.gc as engines before 28 read it, and the fields of it that have no counterpart there.

    Older engines ignore the names of 28, and exit when that leaves a rule without a size. Their keepStorage is the most
    that is kept: what 28 calls maxUsedSpace, or else reservedSpace. An old name that is there wins. 28 and later read
    both.
    """
    if releases.has_max_used_space(engine):
        return gc, []
    lost: list[str] = []
    found = _with_old_names(gc, "default", lost)
    for name, value in found.items():
        if name.lower() == "policy" and isinstance(value, list):
            rules = [_with_old_names(rule, "", lost) if isinstance(rule, dict) else rule for rule in value]
            # One whose only size was lost would be without any.
            found[name] = [new for old, new in zip(value, rules, strict=True) if new == old or _has_size(new)]
    return found, list(dict.fromkeys(lost))


def _with_old_names(table: dict[str, object], prefix: str, lost: list[str]) -> dict[str, object]:
    given = {name.lower().removeprefix(prefix): name for name in table if name.lower().startswith(prefix)}
    new = [given[name] for name in _NEW_NAMES if name in given]
    kept = {name: value for name, value in table.items() if name not in new}
    if _NO_COUNTERPART in given:
        lost.append(given[_NO_COUNTERPART])
    sizes = [table[name] for name in new if name != given.get(_NO_COUNTERPART)]
    if sizes and "keepstorage" not in given:
        kept[f"{prefix}KeepStorage" if prefix else "keepStorage"] = sizes[0]
    return kept


def _has_size(rule: object) -> bool:
    return isinstance(rule, dict) and any(name.lower() == "keepstorage" for name in rule)
