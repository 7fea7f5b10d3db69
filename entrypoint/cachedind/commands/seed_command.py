"""`cachedind seed`: seeds go into a pool without a job, or are looked at without going anywhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from enum import StrEnum

from cachedind.base import state
from cachedind.base.errors import PoolMissingError, SettingsError
from cachedind.base.trace import Trace
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.commands import inventory
from cachedind.dataroot import facts, witness
from cachedind.engine import doubt
from cachedind.engine.image_names import familiar
from cachedind.host import linux, procfs
from cachedind.pool import directory, founding, key_directory, keys, slot_lease, slots
from cachedind.pool.slot_request import Warmth
from cachedind.pool.slot_state import STATE_NAME, Kind
from cachedind.seeds import archive, pool_seeds, seeding, wanted
from cachedind.seeds.model import SeedError, SeedKind
from cachedind.start import furnish, pool_mode
from cachedind.start.seed import put_in_missing
from cachedind.start.summary import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.pool.directory import Pool
    from cachedind.pool.slot_request import TakenSlot
    from cachedind.seeds.model import BadSeed, Seed
    from cachedind.start.context import Prepared, StartContext


class Filled(NamedTuple):
    """What became of one scope of a key: how many images were put in, and what is not there."""

    key: str
    scope: str
    images: int
    bad: tuple[BadSeed, ...]

    def as_json(self) -> dict[str, object]:
        bad = [one._asdict() for one in self.bad]
        return {"key": self.key, "scope": self.scope, "images": self.images, "bad": bad}

    def line(self) -> str:
        put_in = "nothing was missing" if not self.images else f"{self.images} put in"
        if not self.images and self.bad:
            put_in = "nothing put in"
        return f"{inventory.label(self.key, self.scope)}: {put_in}{f', {len(self.bad)} not loaded' if self.bad else ''}"


class Verdict(StrEnum):
    """What `--check` says of a seed."""

    THERE = "in the pool"
    MISSING = "missing"
    BAD = "bad"


class Checked(NamedTuple):
    """One seed, read and verified. `images` are the names in it."""

    seed: str
    verdict: Verdict
    images: tuple[str, ...]
    size_bytes: int
    why: str = ""


# ---- putting in ------------------------------------------------------------------------------------------------------


def fill_pool(context: StartContext, path: str | None, wanted: Sequence[str]) -> list[Filled]:
    """Put the seeds into the base that new keys begin with, and into each scope of the keys `wanted` (none: of all).

    A new pool is made where there is none yet. Raises CachedindError, OSError. Needs --privileged.
    """
    _check_settings(context)
    facts.check_privileges()
    where = _where(context, path)
    if where is None or not os.path.lexists(f"{where}/{founding.RECORD}"):
        # Perhaps this is `docker exec` in an instance, whose start has hidden the pool from its jobs.
        witness.enter_hidden_namespace()
        where = _where(context, path)
    if where is None:
        raise PoolMissingError("no pool is mounted", "mount it at /cachedind: -v /srv/cachedind:/cachedind")
    # What is mounted from now on is seen by nobody else.
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    pool, notes = directory.open_pool(where, context.settings, Trace(context.settings.kill_at))
    try:
        for note in notes:
            context.log.degraded(note)
        there = [inventory.read_key(pool, name) for name in sorted(directory.names_in(pool.keys_fd))]
        unknown = [key for key in wanted if key not in there]
        if unknown:
            raise inventory.unknown_key(pool, unknown[0])
        names = [keys.BASE_KEY]
        names += wanted or [key for key in there if key != keys.BASE_KEY]
        places = [(key, scope) for key in dict.fromkeys(names) for scope in _scopes(pool, key)]
        found = seeding.find(context.settings)
        return [_fill(context, pool, key, scope, found) for key, scope in places]
    finally:
        pool.close()


def _scopes(pool: Pool, key: str) -> list[str]:
    """The scopes of a key that have a golden or a free slot; the one without a name where the key has nothing. Others
    get the seeds from their next start: what runs there must not find itself replaced."""
    with key_directory.locked_key(pool, key, create=False) as key_fd:
        candidates = [] if key_fd is None else key_directory.read_candidates(key_fd)[0]
        there = [c for c in candidates if c.kind is Kind.GOLDEN or not slots.look(key_fd or -1, c.name, 0)[0]]
    return sorted({candidate.state.scope for candidate in there}) or ([] if candidates else [""])


def _check_settings(context: StartContext) -> None:
    if not wanted.wants_seeds(context.settings):
        raise SettingsError("there are no seeds", "mount them at /seeds, or set CACHEDIND_SEED or CACHEDIND_SEED_HOST")


def _where(context: StartContext, path: str | None) -> str | None:
    return path or directory.wanted_path(context.settings)


def _fill(context: StartContext, pool: Pool, key: str, scope: str, found: seeding.Found) -> Filled:
    settings = context.settings._replace(key=key, scope=scope, read_only=False, seed_after=False)
    own = context._replace(settings=settings)
    slot_request = pool_mode.make_slot_request(settings, context.daemon)
    taken = slot_lease.take(pool, slot_request, context.log)
    data_root = os.path.realpath(context.daemon.data_root)
    lease = pool_mode.bind(taken, data_root, context.log)
    try:
        cleaned = furnish.clean(own, furnish.settle(own, lease, taken), found, Stopwatch())
        filled, _ = put_in_missing(own, cleaned, found)
        _leave(filled)
    finally:
        with contextlib.suppress(OSError):
            linux.umount(data_root, linux.MNT_DETACH)
    return Filled(key, scope, filled.seeded, filled.bad)


def _leave(filled: Prepared) -> None:
    """Give the slot back as if no start had been: a clone that was made for this goes, and a slot that was there is as
    good as it was, or as the private daemon has proven it to be."""
    taken: TakenSlot | None = filled.taken
    assert taken is not None
    if taken.warmth is Warmth.LEASED and filled.seeded:
        raw = state.read_state(taken.slot.directory_fd, STATE_NAME)
        left = doubt.after_a_daemon(str((raw or {}).get("doubt") or ""))
        proven: dict[str, object] = {"ready_at": round(time.time(), 3), "doubt": left, "seeding": 0}
        state.write_state(taken.slot.directory_fd, STATE_NAME, proven, raw)
        taken.close()
    else:
        pool_seeds.give_back(taken)


# ---- looking ---------------------------------------------------------------------------------------------------------


def check(context: StartContext, path: str | None) -> list[Checked]:
    """Read and verify every seed, and tell which the pool's base lacks. Changes nothing.

    Compressed seeds are decompressed into a file in the temporary directory meanwhile. Raises CachedindError, OSError.
    """
    _check_settings(context)
    found = seeding.find(context.settings)
    missing = _find_missing(context, path, found)
    rows = [Checked(one.name, Verdict.BAD, (), 0, one.why) for one in found.bad]
    return rows + [row for seed in found.seeds for row in _check_seed(seed, is_missing=seed.identity in missing)]


def _find_missing(context: StartContext, path: str | None, found: seeding.Found) -> frozenset[str]:
    everything = frozenset(seed.identity for seed in found.seeds)
    where = _where(context, path)
    try:
        pool = None if where is None else inventory.find_pool(where, context.settings)
    except PoolMissingError:
        pool = None
    if pool is None:
        return everything
    try:
        slot_request = pool_mode.make_slot_request(context.settings, context.daemon)
        with pool_seeds.newest_golden(pool, keys.BASE_KEY, slot_request.requirements, procfs.read_boot_id()) as golden:
            if golden is None:
                return everything
            plan = seeding.compare(found, golden.data_fd, golden.storage, context.log)
            return frozenset(seed.identity for seed in plan.missing)
    finally:
        pool.close()


def _check_seed(seed: Seed, *, is_missing: bool) -> list[Checked]:
    verdict = Verdict.MISSING if is_missing else Verdict.THERE
    if seed.kind is SeedKind.HOST:
        return [Checked(seed.name, verdict, (seed.name,), seed.size_bytes)]
    directory = tempfile.gettempdir()
    status = os.statvfs(directory)
    try:
        with archive.open_seed(
            seed, spool_directory=directory, room_bytes=status.f_bavail * status.f_frsize, on_read=lambda _: None
        ) as opened:
            for image in opened.images:
                for layer in image.layers:
                    for _ in layer.content.chunks():
                        pass
            bad = [Checked(seed.name, Verdict.BAD, (name,) if name else (), 0, why) for name, why in opened.bad]
            names = tuple(familiar(name) for image in opened.images for name in image.names)
            fine = [Checked(seed.name, verdict, names, seed.size_bytes)] if opened.images else []
            return fine + bad
    except SeedError as error:
        return [Checked(seed.name, Verdict.BAD, (), seed.size_bytes, str(error))]
