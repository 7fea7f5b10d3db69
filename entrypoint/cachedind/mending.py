"""Mending: a data-root that its engine could not use is made fit in the same start, or found to be beyond it.

From cheap to expensive, each rung once, and all within a time:

    restore     a small file of which a good copy was kept when it was last seen to be good
    move        what is damaged out of the engine's sight; it makes it anew
    prove       a private daemon, which says nothing of the data's worth when it comes up, and all when it does not
    rebuild     everything away that an engine can make anew from images and layers, and prove again
    empty       images and build cache away: cold, and working

What is moved lies in `.cachedind/aside/<when>/` of the data-root, under the path it had, with why.json. In direct mode
nothing is ever deleted; a slot of a pool keeps the last few, being a cache. Where a pool has another good state, that
is better than anything below `move`, and the slot is left to be set aside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from cachedind import beneath, damage, databases, state
from cachedind.engine_root import engine_root
from cachedind.errors import MaintenanceError
from cachedind.model import ImageStore, Loss
from cachedind.private_daemon import private_daemon
from cachedind.pruning import parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import docker

    from cachedind.damage import Damage
    from cachedind.model import EngineVersion, StoragePlan
    from cachedind.trace import Trace

HOME = ".cachedind"
ASIDE = "aside"
KEPT = "kept"
CONTROL = "control"
RECORD = "why.json"
WRITTEN_S = 120.0
PROOF_S = 45.0
"""How long a private daemon may take to come up. A healthy one takes 0.1 s; one that replays a journal, more."""
MENDING_S = 100.0
"""How long all of it may take in one start, on however many slots of a pool: two daemons that hang, and what can be
done without proof after them."""
MAX_KEPT_BYTES = 4 << 20
MAX_IN_POOL = 3

_COSTS = {
    Loss.NOTHING: "nothing is lost",
    Loss.RECORDS: "build history, networks, labels of volumes or a container may be gone",
    Loss.NAMES: "images may have lost their names",
    Loss.RECENT: "what came in the last minutes before that is removed",
    Loss.CACHE: "the build cache starts anew, images stay",
    Loss.IMAGES: "images and build cache start anew",
}


class Patient(NamedTuple):
    """A data-root whose lease is held: its path, the engine's root in it, open, and the lock that a private daemon
    inherits. `engines` are the one that wrote it last, where that is known, and the one that is to start."""

    data_root: str
    root_fd: int
    storage: StoragePlan
    lock_fd: int
    engines: tuple[EngineVersion | None, ...] = ()


class Doubt(NamedTuple):
    """Why a data-root is looked at closely. `crashed` tells that the host went down since its last daemon, which may
    have cost it files; `active_at` is when that daemon gave its last sign that somebody has noted."""

    why: str
    crashed: bool = False
    active_at: float = 0.0


class Moved(NamedTuple):
    """What was taken out of the engine's sight: where to, relative to the data-root, and why."""

    where: str
    paths: tuple[str, ...]
    why: str


class Result(NamedTuple):
    """How it went. `fit` is false when something else should be taken; `loss` is the worst that was lost, None when
    nothing was wrong; `why` says what was, for people. `unproven` is why no private daemon could tell."""

    fit: bool
    loss: Loss | None = None
    why: str = ""
    moved: tuple[Moved, ...] = ()
    unproven: str = ""

    @property
    def cost(self) -> str:
        return _COSTS[self.loss or Loss.NOTHING]


# ---- planning: pure --------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What to do about what was found: put these copies back, move these away, prove what then is there; or, `leave`
    it, because there is something better to take."""

    restore: tuple[str, ...] = ()
    move: tuple[str, ...] = ()
    prove: bool = False
    leave: bool = False


def plan_mending(
    found: Sequence[Damage], storage: StoragePlan, kept: frozenset[str], *, doubted: bool, has_better: bool
) -> Plan:
    """`kept` are the files of which there is a good copy, `doubted` tells that the last daemon did not come up or the
    host went down, `has_better` that a pool has another state of the kind. Nothing is ever deleted."""
    if not found:
        return Plan(prove=doubted)
    lost = [one for one in found if one.path not in kept]
    if has_better and max((one.loss for one in lost), default=Loss.NOTHING) >= Loss.NAMES:
        return Plan(leave=True)
    restore = tuple(one.path for one in found if one.path in kept)
    move: list[str] = []
    for one in lost:
        move += _goes_with(one, storage)
    return Plan(restore, tuple(dict.fromkeys(move)), prove=True)


def _goes_with(one: Damage, storage: StoragePlan) -> list[str]:
    """What has no meaning without the damaged thing, and would mislead an engine: BuildKit's records of layers, say."""
    if one.loss is Loss.IMAGES:
        if storage.store is ImageStore.CONTAINERD:
            return ["containerd", *_build_cache(storage)]
        # One layer that is gone takes what lies on it; the build cache may refer to it, too.
        return [one.path, *_build_cache(storage)]
    return [one.path, *(_build_cache(storage) if one.loss is Loss.CACHE else [])]


def _build_cache(storage: StoragePlan) -> list[str]:
    """Everything in which BuildKit refers to results and to each other. One of them alone would speak of what the
    others do not have. The worker's name stays: it is what makes the next build cache this one's."""
    names = [path for path, loss in databases.known(storage).items() if loss is Loss.CACHE]
    return [*names, "buildkit/content"] if storage.store is ImageStore.GRAPHDRIVER else names


def everything_remakeable(storage: StoragePlan) -> tuple[str, ...]:
    """What an engine makes anew while images and layers stay: all databases but those that list them."""
    names = [path for path, loss in databases.known(storage).items() if loss < Loss.IMAGES]
    return (*names, "buildkit", "network/files", "swarm", "runtimes", "plugins", "content")


def everything_but_volumes(storage: StoragePlan) -> tuple[str, ...]:
    """All that dockerd reads at its start, but the content of volumes."""
    more = ("image", "containers", "containerd", "rootfs", "engine-id", "volumes/metadata.db", storage.driver)
    return (*everything_remakeable(storage), *more)


# ---- doing -----------------------------------------------------------------------------------------------------------


def mend(
    patient: Patient,
    doubt: Doubt | None,
    *,
    has_better: bool,
    in_pool: bool,
    environ: Mapping[str, str],
    trace: Trace,
    deadline: float,
) -> Result:
    """Make a data-root fit, if there is anything wrong with it, by `deadline` (of time.monotonic()).

    Raises OSError when nothing can be moved (a full or read-only disk). Needs --privileged, and a single thread.
    """
    found = damage.find(patient.root_fd, patient.storage, thorough=doubt is not None, engines=patient.engines)
    found += find_lost_words(patient.root_fd, patient.storage)
    if not found and doubt is None:
        return Result(True)
    kept = read_kept(patient.root_fd, patient.storage)
    plan = plan_mending(found, patient.storage, kept, doubted=doubt is not None, has_better=has_better)
    why = _describe(found, doubt)
    if plan.leave:
        return Result(False, max(one.loss for one in found), why)
    moved = _move(patient.root_fd, (*plan.restore, *plan.move), why, in_pool=in_pool)
    for path in plan.restore:
        _put_back(patient.root_fd, path)
    trace.reach("mend.moved")
    loss = max((Loss.NOTHING if one.path in plan.restore else one.loss for one in found), default=None)
    problem, forgotten = _prove(patient, doubt, environ, deadline)
    trace.reach("mend.proven")
    if problem is None:
        worst = Loss.RECENT if forgotten and (loss is None or loss < Loss.RECENT) else loss
        return Result(True, worst, why if worst is not None else "", tuple(moved))
    if in_pool and time.monotonic() >= deadline:
        return Result(False, loss, f"{why}; {problem}", tuple(moved))
    if not _is_to_blame(patient, environ, deadline):
        unproven = f"no private daemon comes up here, not even on an empty directory: {problem}"
        return Result(True, loss, why if loss is not None else "", tuple(moved), unproven)
    if has_better:
        return Result(False, loss, f"{why}; {problem}", tuple(moved))
    return _empty_by_and_by(patient, moved, f"{why}; {problem}", environ, deadline, in_pool=in_pool)


def _empty_by_and_by(
    patient: Patient, moved: list[Moved], why: str, environ: Mapping[str, str], deadline: float, *, in_pool: bool
) -> Result:
    """The last rungs: nothing was found, or what was found was not all. The time may be over before the last, which is
    then done without proof: a daemon without images is better than none."""
    rungs = ((Loss.CACHE, everything_remakeable), (Loss.IMAGES, everything_but_volumes))
    in_time = True
    for loss, paths in rungs:
        moved += _move(patient.root_fd, paths(patient.storage), why, in_pool=in_pool)
        in_time = time.monotonic() < deadline
        if not in_time:
            continue
        problem, _ = _prove(patient, None, environ, deadline)
        if problem is None:
            return Result(True, loss, why, tuple(moved))
    if not in_time:
        return Result(True, Loss.IMAGES, why, tuple(moved), f"there was no time left for it after {MENDING_S:g} s")
    return Result(False, Loss.IMAGES, f"{why}; {problem}", tuple(moved))


def _describe(found: Sequence[Damage], doubt: Doubt | None) -> str:
    if not found:
        return "" if doubt is None else doubt.why
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0].path}: {found[0].why}{more}"


def _prove(
    patient: Patient, doubt: Doubt | None, environ: Mapping[str, str], deadline: float
) -> tuple[str | None, int]:
    """What a private daemon says against the data-root, None when it comes up on it; and how many images and records
    of the build cache were removed because a crash of the host may have emptied them."""
    until = min(deadline, time.monotonic() + PROOF_S)
    try:
        with private_daemon(
            patient.data_root, patient.storage, lock_fd=patient.lock_fd, environ=environ, deadline=until
        ) as client:
            return None, (forget_recent(client.api, doubt.active_at) if doubt is not None and doubt.crashed else 0)
    except MaintenanceError as error:
        return error.cause, 0


def _is_to_blame(patient: Patient, environ: Mapping[str, str], deadline: float) -> bool:
    """Whether a private daemon comes up on an empty directory beside the data. Where it does not, something else is
    wrong, and no data must go for that. Raises OSError."""
    from cachedind import clone

    with beneath.made_directory(patient.root_fd, HOME) as home_fd:
        clone.remove(home_fd, CONTROL)
        os.mkdir(CONTROL, 0o710, dir_fd=home_fd)
        try:
            root = engine_root(patient.data_root, patient.storage.remap)
            empty = patient._replace(data_root=f"{root}/{HOME}/{CONTROL}")
            if patient.storage.remap is not None:
                os.fchmod(home_fd, 0o711)  # an engine looks whether its remapped root gets there
            return _prove(empty, None, environ, deadline)[0] is None
        finally:
            clone.remove(home_fd, CONTROL)


# ---- after a crash of the host ---------------------------------------------------------------------------------------


def forget_recent(api: docker.APIClient, active_at: float) -> int:
    """Remove the images and the build cache that came in the last seconds before the host went down.

    Engines sync their records, and not the files of layers: these may be empty although all records of them are there
    (containerd issue 5854), and nobody ever looks at their bytes again. What was written WRITTEN_S before the last sign
    of life is on disk, as kernels write everything by themselves after half a minute (vm.dirty_expire_centisecs).
    `active_at` is one such sign, in seconds since the epoch; younger ones are found in the data. Returns how many went.
    """
    # The SDK's own df() has the size of everything else computed as well.
    untyped: Any = api
    usage = untyped._result(untyped._get(untyped._url("/system/df"), params={"type": "build-cache"}), json=True)
    records = [record for record in usage.get("BuildCache") or () if isinstance(record, dict)]
    images = [(image["Id"], _tagged_at(api, image["Id"])) for image in api.images(all=True)]
    made = {str(record.get("ID")): parse_time(record.get("CreatedAt")) for record in records}
    used = [parse_time(record.get("LastUsedAt")) for record in records]
    newest = max([active_at, *made.values(), *used, *(at for _, at in images)])
    gone = 0
    for image_id, at in images:
        if at >= newest - WRITTEN_S:
            with contextlib.suppress(*_docker_errors()):
                api.remove_image(image_id, force=True)
                gone += 1
    return gone + _forget_records(api, {name for name, at in made.items() if at >= newest - WRITTEN_S})


def _forget_records(api: docker.APIClient, names: set[str]) -> int:
    """One by one: a record goes only after those that are made on it."""
    gone = 0
    for _ in range(len(names)):
        removed = 0
        for name in sorted(names):
            filters: Any = {"id": name}
            with contextlib.suppress(*_docker_errors()):
                found = api.prune_builds(filters=filters, all=True).get("CachesDeleted") or []
                removed += len(found)
                names = names - set(found)
        gone += removed
        if not removed or not names:
            break
    return gone


def _tagged_at(api: docker.APIClient, image_id: str) -> float:
    """When it came, or got its last name."""
    with contextlib.suppress(*_docker_errors()):
        return parse_time((api.inspect_image(image_id).get("Metadata") or {}).get("LastTagTime"))  # type: ignore[no-untyped-call]
    return 0.0


def _docker_errors() -> tuple[type[Exception], ...]:
    from docker.errors import DockerException
    from requests import RequestException

    return (DockerException, RequestException)


# ---- aside -----------------------------------------------------------------------------------------------------------


def _move(root_fd: int, paths: Sequence[str], why: str, *, in_pool: bool) -> list[Moved]:
    """Move what there is of these paths aside, together. Raises OSError."""
    # Directories before what is in them, which goes with them and would be in their way.
    there = [path for path in sorted(set(paths)) if _is_there(root_fd, path)]
    if not there:
        return []
    with beneath.made_directory(root_fd, f"{HOME}/{ASIDE}") as aside_fd:
        name = _new_name(aside_fd)
        os.mkdir(name, 0o700, dir_fd=aside_fd)
        with beneath.made_directory(aside_fd, name) as fd:
            moved = [path for path in there if _move_one(root_fd, path, fd)]
            content: dict[str, object] = {"why": why, "at": round(time.time(), 3), "paths": moved}
            state.write_state(fd, RECORD, content, None)
        if in_pool:
            _forget_older(aside_fd)
    return [Moved(f"{HOME}/{ASIDE}/{name}", tuple(moved), why)]


def _move_one(root_fd: int, path: str, aside_fd: int) -> bool:
    """Under the path that it had. What lies below something that was moved before went with it."""
    above, _, name = path.rpartition("/")
    try:
        with (
            beneath.directory(root_fd, above or ".") as source_fd,
            beneath.made_directory(aside_fd, above) as target_fd,
        ):
            os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        # Something stands where a directory should: that is what has to go.
        return _move_one(root_fd, above, aside_fd) if above else False
    return True


def _is_there(root_fd: int, path: str) -> bool:
    """Also when something stands where a directory on the way should."""
    try:
        return beneath.exists(root_fd, path)
    except OSError as error:
        return error.errno in (errno.ENOTDIR, errno.ELOOP)


def _new_name(aside_fd: int) -> str:
    """When, for people, and once more when there are two in a second."""
    base = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    taken = set(os.listdir(aside_fd))
    return next(name for number in range(1000) if (name := base + (f"-{number}" if number else "")) not in taken)


def _forget_older(aside_fd: int) -> None:
    from cachedind import clone

    for name in sorted(os.listdir(aside_fd))[:-MAX_IN_POOL]:
        with contextlib.suppress(OSError):
            clone.remove(aside_fd, name)


class Aside(NamedTuple):
    """Something that lies aside: where, relative to the data-root, why, and what, under the paths that it had there."""

    name: str
    why: str
    paths: tuple[str, ...]


def read_aside(root_fd: int) -> list[Aside]:
    """What lies aside in a data-root, oldest first. Nothing of it is believed or followed."""
    found: list[Aside] = []
    for name in beneath.names(root_fd, f"{HOME}/{ASIDE}"):
        where, raw = f"{HOME}/{ASIDE}/{name}", {}
        with contextlib.suppress(OSError, ValueError), beneath.directory(root_fd, where) as fd:
            raw = state.read_state(fd, RECORD) or {}
        paths = raw.get("paths")
        listed = tuple(map(str, paths)) if isinstance(paths, list) else ()
        found.append(Aside(where, str(raw.get("why", "?")), listed))
    return found


# ---- good copies -----------------------------------------------------------------------------------------------------


def _files_to_keep(storage: StoragePlan) -> list[str]:
    """Small, whole at any moment that no engine runs, and dear: the words that the build cache hangs on, and names."""
    names = damage.names_file(storage)
    return [damage.identity_file(storage), *([names] if names else [])]


def keep_copies(root_fd: int, storage: StoragePlan) -> None:
    """Copy what a later start may have to put back, as it is now, before the daemon. Needs the lease, and data of which
    nothing is damaged. A disk that has no room for them costs the copies alone."""
    with contextlib.suppress(OSError, ValueError):
        for path in _files_to_keep(storage):
            raw = _read(root_fd, path)
            copy = f"{HOME}/{KEPT}/{path}"
            if raw is not None and raw != _read(root_fd, copy):
                _write(root_fd, copy, raw)


def read_kept(root_fd: int, storage: StoragePlan) -> frozenset[str]:
    """The files of which there is a copy. It was checked when it was made, and is checked again like any other."""
    return frozenset(path for path in _files_to_keep(storage) if _read(root_fd, f"{HOME}/{KEPT}/{path}"))


def find_lost_words(root_fd: int, storage: StoragePlan) -> list[Damage]:
    """Small files that are gone, or say something else, although there is a copy and data that needs them."""
    path = damage.identity_file(storage)
    copy = _read(root_fd, f"{HOME}/{KEPT}/{path}")
    if not copy or not _is_there(root_fd, "buildkit/cache.db") or beneath.leads_away(root_fd, path):
        return []
    now = _read(root_fd, path)
    if now == copy:
        return []
    return [damage.Damage(path, "it is gone" if now is None else "it is another one than before", Loss.CACHE)]


def _put_back(root_fd: int, path: str) -> bool:
    raw = _read(root_fd, f"{HOME}/{KEPT}/{path}")
    if raw is None:
        return False
    with contextlib.suppress(OSError):
        _write(root_fd, path, raw)
        return True
    return False


def _read(root_fd: int, path: str) -> bytes | None:
    """A small regular file; None for anything else."""
    with contextlib.suppress(OSError, ValueError):
        return beneath.read(root_fd, path, MAX_KEPT_BYTES) or None
    return None


def _write(root_fd: int, path: str, raw: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    above, _, name = path.rpartition("/")
    temporary = f"{name}.cachedind"
    with beneath.made_directory(root_fd, above) as fd:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=fd), "wb") as file:
            file.write(raw)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
