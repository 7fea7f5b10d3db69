"""How a pool is kept, how full it is and what was set aside: what `cachedind status` tells. Looking changes nothing."""

from __future__ import annotations

import os

from cachedind.base import state
from cachedind.base.typed import TYPE_CHECKING
from cachedind.commands.inventory import Condition, read_rows
from cachedind.dataroot import facts
from cachedind.pool import directory, eviction, survey
from cachedind.settings import build_cache

if TYPE_CHECKING:
    from cachedind.commands.inventory import Row
    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config

Report = dict[str, object]


def read_status(pool: Pool, settings: Config, now: float) -> Report:
    """Where the pool is, how full, what is in it, and this container's own slot. Raises OSError."""
    rows = read_rows(pool, sorted(directory.names_in(pool.keys_fd)), now)
    report: Report = {
        "pool": {
            "path": pool.path,
        },
        "filesystem": _read_space(pool.path),
        "layers": _read_layers(pool),
    }
    report["holds"] = {
        "keys": len({row.directory for row in rows}),
        "goldens": sum(row.condition in (Condition.GOLDEN, Condition.PREVIOUS, Condition.OTHER) for row in rows),
        "slots": sum(row.name.startswith("slots/") for row in rows),
        "held": sum(row.held for row in rows),
        "unreadable": sum(row.condition is Condition.UNREADABLE for row in rows),
        "stage": len(directory.names_in(pool.stage_fd)),
        "trash": len(directory.names_in(pool.trash_fd)),
    }
    report["aside"] = read_aside(pool)
    budget = eviction.read_budget(pool, settings)
    space = os.statvfs(pool.fd)
    cache_bytes = settings.cache_max_bytes or build_cache.default_max_bytes(space.f_blocks * space.f_frsize)
    report["limits"] = {
        "pool_max_size_bytes": budget.max_bytes,
        "pool_min_free_bytes": budget.min_free_bytes,
        "pool_min_free_inodes": budget.min_free_inodes,
        "max_age_s": budget.max_age_s,
        "cache_max_size_bytes": cache_bytes,
    }
    report["here"] = next((_describe_own(pool, row) for row in rows if row.here), None)
    return report


def _read_space(path: str) -> Report:
    """Inodes are None where the filesystem does not count them (btrfs)."""
    found = os.statvfs(path)
    return {
        "fstype": facts.read_mount(path).fstype,
        "total_bytes": found.f_blocks * found.f_frsize,
        "used_bytes": (found.f_blocks - found.f_bfree) * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
        "total_inodes": found.f_files or None,
        "used_inodes": found.f_files - found.f_ffree if found.f_files else None,
        "free_inodes": found.f_favail if found.f_files else None,
    }


def _read_layers(pool: Pool) -> Report:
    sizes = survey.read_layer_sizes(pool).values()
    return {"count": len(sizes), "bytes": sum(size.bytes for size in sizes)}


def _describe_own(pool: Pool, row: Row) -> Report:
    """Ready is what the witness has noted down; this start's note begins without."""
    return {"key": row.key, "slot": row.id, "ready": row.ready_s is not None, "ready_s": row.ready_s}


def read_aside(pool: Pool) -> list[Report]:
    """What was set aside, and why, the oldest first."""
    found: list[Report] = []
    for name in directory.names_in(pool.aside_fd):
        raw, why = _read_why(pool, name)
        at, was = raw.get("at"), raw.get("was")
        found.append(
            {
                "id": name,
                "was": was if isinstance(was, str) else None,
                "why": why,
                "at": at if isinstance(at, (int, float)) and 0 <= at < 1e12 else None,
            }
        )
    return sorted(found, key=lambda aside: (aside["at"] or 0, aside["id"]))


def _read_why(pool: Pool, name: str) -> tuple[Report, str]:
    fd = None
    try:
        fd = directory.open_directory(pool.aside_fd, name)
        raw = None if fd is None else state.read_state(fd, "why.json")
    except (ValueError, OSError) as error:
        return {}, f"why.json is unreadable: {error}"
    finally:
        if fd is not None:
            os.close(fd)
    if raw is None:
        return {}, "why.json is missing"
    return raw, str(raw.get("why"))
