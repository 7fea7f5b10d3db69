"""Clones: a new owner's data from another's, which shares its layers."""

from __future__ import annotations

import errno
import os
import stat

from cachedind.base.model import ImageStore, StoragePlan
from cachedind.base.typed import TYPE_CHECKING
from cachedind.engine import build_records, immutable, remapping
from cachedind.host import beneath, linux
from cachedind.pool import layer_list, mutable, records, sharing
from cachedind.pool.layers import Owner

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState
    from cachedind.pool.directory import Pool
    from cachedind.pool.mutable import LeftOut

_DATA_MODE = 0o710  # what dockerd gives its data-root
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def storage_of(found: DataRootState | None) -> StoragePlan | None:
    return None if found is None else StoragePlan(found.store, found.driver, "")


def is_possible(found: DataRootState | None) -> bool:
    """Whether a state's layers can be shared: other drivers keep them as subvolumes, datasets or whole copies."""
    storage = storage_of(found)
    return storage is None or is_possible_with(storage)


def is_possible_with(storage: StoragePlan) -> bool:
    return bool(immutable.shared_directories(storage)[0])


def make_data(stage_fd: int) -> int:
    """An empty data directory in an owner's; returns its descriptor. Raises OSError."""
    os.mkdir("data", _DATA_MODE, dir_fd=stage_fd)
    os.chmod("data", _DATA_MODE, dir_fd=stage_fd)
    return os.open("data", _DIRECTORY, dir_fd=stage_fd)


def share_layers(pool: Pool, owner: Owner, found: DataRootState | None) -> None:
    """Move what never changes of a slot's data into the layer store. Needs its lease, and no daemon on it. Raises
    OSError."""
    storage = storage_of(found)
    if storage is None or found is None:
        return
    try:
        root_fd = remapping.open_in(owner.data_fd, found.remap)
    except FileNotFoundError:
        return
    try:
        below = f"{found.remap}/" if found.remap else ""
        paths = [f"{below}{path}" for path in immutable.find(root_fd, storage)]
    finally:
        os.close(root_fd)
    marker = "committed" if storage.store is ImageStore.GRAPHDRIVER else ""
    sharing.share(pool.layers_fd, owner, paths, marker, pool.trace)


def copy(pool: Pool, source: Owner, found: DataRootState | None, stage_fd: int) -> LeftOut:
    """Fill a new owner's directory with a clone of the source: data/ and the list of its layers. Returns what it does
    without.

    Needs root, and that nobody changes the source: its lease, or a golden's shared lock. Raises BadLinkError,
    BadListError, OSError (ENOSPC, EDQUOT, EROFS, EIO: the disk's own troubles). An unfinished one is the caller's to
    remove.
    """
    allowed = read_list(source)
    records.check_links(source.data_fd, allowed, pool.layers_fd)
    # Before anything links to them: from here on they have an owner more.
    layer_list.write_list(stage_fd, allowed)
    data_fd = make_data(stage_fd)
    try:
        remap = "" if found is None else found.remap
        results, left_out = _look(source, found, data_fd)
        plan = records.plan_copy(storage_of(found), results, left_out.names)
        linked = records.copy(source.data_fd, data_fd, remap, plan, allowed)
    finally:
        os.close(data_fd)
    layer_list.write_list(stage_fd, linked)
    return left_out


def examine(pool: Pool, owner: Owner) -> str:
    """End what a killed start has left half shared, and see that a slot has a place for the pool's layers, and links to
    nothing but its own. Returns what is wrong with it, or an empty word. Needs the lease. Raises OSError."""
    try:
        with beneath.made_directory(owner.data_fd, immutable.SHARED_AT):
            pass
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        parent = os.path.dirname(immutable.SHARED_AT)
        is_parent = stat.S_ISDIR(os.lstat(parent, dir_fd=owner.data_fd).st_mode)
        odd = immutable.SHARED_AT if is_parent else parent
        return f"{odd} is not a directory: the last job put something else in its place"
    try:
        sharing.finish(pool.layers_fd, owner)
        check(pool, owner)
    except ValueError as error:
        return str(error)
    return ""


def check(pool: Pool, owner: Owner) -> None:
    """Whether a slot's data links to nothing but its own layers, and these are there; its list is then just of them, so
    that what its engine has removed may go. Costs some system calls for each layer. Needs the lease. Raises
    BadLinkError, OSError."""
    allowed = read_list(owner)
    linked = records.check_links(owner.data_fd, allowed, pool.layers_fd)
    if linked != allowed:
        layer_list.write_list(owner.directory_fd, linked, durable=True)


def read_list(owner: Owner) -> frozenset[str]:
    """The layers of an owner; of one whose list cannot be read, what its data links to, which becomes its list. Raises
    BadListError where it cannot, OSError."""
    try:
        return layer_list.read_list(owner.directory_fd)
    except layer_list.BadListError:
        found = records.find_links(owner.data_fd)
        try:
            layer_list.write_list(owner.directory_fd, found)
        except IsADirectoryError as error:
            raise layer_list.BadListError(f"{layer_list.LIST} is not a file") from error
        return found


def _look(owner: Owner, found: DataRootState | None, copy_fd: int) -> tuple[frozenset[str], LeftOut]:
    """The directories whose files a copy links (results of builds, contexts), and what it leaves empty."""
    storage = storage_of(found)
    if storage is None or found is None:
        return frozenset(), mutable.NOTHING
    try:
        root_fd = remapping.open_in(owner.data_fd, found.remap)
    except FileNotFoundError:
        return frozenset(), mutable.NOTHING
    try:
        results = immutable.find_results(root_fd, storage, found.engine)
        results |= build_records.find_contexts(root_fd, storage, found.engine)
        return results, mutable.choose(root_fd, storage, found.engine, results, lambda: linux.has_reflinks(copy_fd))
    finally:
        os.close(root_fd)
