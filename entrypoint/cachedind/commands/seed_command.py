"""`cachedind seed`: seeds go into a pool without a job, or are looked at without going anywhere."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base import state
from cachedind.base.errors import PoolMissingError, SettingsError
from cachedind.base.trace import Trace
from cachedind.commands import inventory
from cachedind.dataroot import facts, witness
from cachedind.engine.image_names import familiar
from cachedind.host import linux, procfs
from cachedind.pool import keys, pool, slot_lease, slots
from cachedind.pool.slot_lease import Warmth
from cachedind.pool.slots import STATE_NAME
from cachedind.seeds import archive, files, pool_seeds, seeding
from cachedind.seeds.model import SeedError, SeedKind
from cachedind.start import furnish, pool_mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.pool.pool import Pool
    from cachedind.pool.slot_lease import Tenancy
    from cachedind.seeds.model import BadSeed, Seed
    from cachedind.start.furnish import Home, Site


class Filled(NamedTuple):
    """What became of one key: how many images were put in, and what is not there."""

    key: str
    images: int
    bad: tuple[BadSeed, ...]

    def as_json(self) -> dict[str, object]:
        return {"key": self.key, "images": self.images, "bad": [one._asdict() for one in self.bad]}

    def line(self) -> str:
        put_in = "nothing was missing" if not self.images else f"{self.images} put in"
        if not self.images and self.bad:
            put_in = "nothing put in"
        return f"{inventory.label(self.key)}: {put_in}{f', {len(self.bad)} not loaded' if self.bad else ''}"


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


def fill_pool(site: Site, path: str | None, wanted: Sequence[str]) -> list[Filled]:
    """Put the seeds into the base that new keys begin with, and into each of the keys `wanted` (none: all there are).

    A new pool is made where there is none yet. Raises CachedindError, OSError. Needs --privileged.
    """
    _check_settings(site)
    facts.check_privileges()
    where = _where(site, path)
    if where is None or not os.path.lexists(f"{where}/{pool.RECORD}"):
        # Perhaps this is `docker exec` in an instance, whose start has hidden the pool from its jobs.
        witness.enter_hidden_namespace()
        where = _where(site, path)
    if where is None:
        raise PoolMissingError("no pool is mounted", "mount it at /cachedind: -v /srv/cachedind:/cachedind")
    # What is mounted from now on is seen by nobody else.
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    home, notes = pool.open_pool(where, site.settings, Trace(site.settings.kill_at))
    try:
        for note in notes:
            site.log.degraded(note)
        there = [inventory.read_key(home, name) for name in sorted(pool.names_in(home.keys_fd))]
        unknown = [key for key in wanted if key not in there]
        if unknown:
            raise inventory.unknown_key(home, unknown[0])
        names = [keys.BASE_KEY] if slots.has_clones(home) else []
        names += wanted or [key for key in there if key != keys.BASE_KEY]
        return [_fill_key(site, home, key) for key in dict.fromkeys(names)]
    finally:
        home.close()


def _check_settings(site: Site) -> None:
    if not files.wants_seeds(site.settings):
        raise SettingsError("there are no seeds", "mount them at /seeds, or set CACHEDIND_SEED or CACHEDIND_SEED_HOST")


def _where(site: Site, path: str | None) -> str | None:
    return path or pool.wanted_path(site.settings)


def _fill_key(site: Site, home: Pool, key: str) -> Filled:
    settings = site.settings._replace(key=key, read_only=False, seed_after=False)
    own = site._replace(settings=settings)
    order = pool_mode.make_order(settings, site.daemon)
    tenancy = slot_lease.take(home, order, site.log)
    data_root = os.path.realpath(site.daemon.data_root)
    lease = pool_mode.bind(tenancy, data_root, site.log)
    try:
        filled, _ = furnish.seed(own, furnish.settle(own, lease, tenancy))
        _leave(filled)
    finally:
        with contextlib.suppress(OSError):
            linux.umount(data_root, linux.MNT_DETACH)
    return Filled(key, filled.seeded, filled.bad)


def _leave(filled: Home) -> None:
    """Give the slot back as if no start had been: a clone that was made for this goes, and a slot that was there is as
    good as it was, or as the private daemon has proven it to be."""
    tenancy: Tenancy | None = filled.tenancy
    assert tenancy is not None
    if tenancy.warmth is Warmth.LEASED and filled.seeded:
        raw = state.read_state(tenancy.slot.directory_fd, STATE_NAME)
        proven: dict[str, object] = {"ready_at": round(time.time(), 3), "doubt": "", "seeding": 0}
        state.write_state(tenancy.slot.directory_fd, STATE_NAME, proven, raw)
        tenancy.slot.close()
    else:
        pool_seeds.give_back(tenancy)


# ---- looking ---------------------------------------------------------------------------------------------------------


def check(site: Site, path: str | None) -> list[Checked]:
    """Read and verify every seed, and tell which the pool's base lacks. Changes nothing.

    Compressed seeds are decompressed into a file in the temporary directory meanwhile. Raises CachedindError, OSError.
    """
    _check_settings(site)
    found = seeding.find(site.settings)
    missing = _find_missing(site, path, found)
    rows = [Checked(one.name, Verdict.BAD, (), 0, one.why) for one in found.bad]
    return rows + [row for seed in found.seeds for row in _check_seed(seed, is_missing=seed.identity in missing)]


def _find_missing(site: Site, path: str | None, found: seeding.Found) -> frozenset[str]:
    everything = frozenset(seed.identity for seed in found.seeds)
    where = _where(site, path)
    try:
        home = None if where is None else inventory.open_home(where, site.settings)
    except PoolMissingError:
        home = None
    if home is None:
        return everything
    try:
        order = pool_mode.make_order(site.settings, site.daemon)
        with pool_seeds.newest_golden(home, keys.BASE_KEY, order.wish, procfs.read_boot_id()) as golden:
            if golden is None:
                return everything
            plan = seeding.compare(found, golden.data_fd, golden.storage, site.log)
            return frozenset(seed.identity for seed in plan.missing)
    finally:
        home.close()


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
