"""What the steps of a start hand on: what the start was given, and what it has leased and decided so far."""

from __future__ import annotations

from cachedind.base.log import Log
from cachedind.base.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cachedind.base.model import StoragePlan
    from cachedind.dataroot.facts import Place
    from cachedind.dataroot.lease import Lease
    from cachedind.engine.doubt import Doubt
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.seeds.model import BadSeed
    from cachedind.settings.config import Config
    from cachedind.settings.daemon_json import DaemonSettings


def make_log(settings: Config) -> Log:
    return Log(level=settings.log_level, as_json=settings.log_json, strict=settings.strict)


class StartContext(NamedTuple):
    """What a start was given: its settings, dockerd's arguments and files, the environment, and the log."""

    settings: Config
    daemon: DaemonSettings
    environ: dict[str, str]
    log: Log


class Past(NamedTuple):
    """The slots that this start has given up before the one it has now: how many (`moves`), the ids of those that stay
    as they are and must not be taken again (`avoid`), and why the one it has now must be proven (`doubt`)."""

    moves: int = 0
    avoid: frozenset[str] = frozenset()
    doubt: Doubt | None = None


NOTHING_BEFORE = Past()


class Prepared(NamedTuple):
    """A leased data-root and what was decided for it. `seeded` counts the images that this start put in, `bad` are the
    seeds that are not there, `cache_max_bytes` is what the build cache has to be kept to in any case."""

    lease: Lease
    taken: TakenSlot | None
    place: Place
    storage: StoragePlan
    seeded: int = 0
    bad: tuple[BadSeed, ...] = ()
    cache_max_bytes: int | None = None
    past: Past = NOTHING_BEFORE
