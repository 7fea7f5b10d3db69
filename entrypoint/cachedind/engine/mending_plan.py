"""Which files to put back and which to set aside, by what was found to be damaged. Pure."""

from __future__ import annotations

from cachedind.base.model import ImageStore, Loss
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import databases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachedind.base.model import StoragePlan
    from cachedind.engine.damage import Damage
    from cachedind.engine.hollow import Found


class Plan(NamedTuple):
    """What to do: put the copies of `restore` back, set `move` aside at once, and `if_it_fails` when a daemon has
    failed on the data; or `leave` it, because there is something better to take. `at_once` and `later` are what these
    moves cost."""

    restore: tuple[str, ...] = ()
    move: tuple[str, ...] = ()
    if_it_fails: tuple[str, ...] = ()
    leave: bool = False
    at_once: Loss | None = None
    later: Loss | None = None


def plan_mending(
    found: Sequence[Damage],
    emptied: Found,
    storage: StoragePlan,
    copies: frozenset[str],
    *,
    in_pool: bool,
    has_better: bool,
) -> Plan:
    """`emptied` has the layers that a crash has emptied, `copies` the files of which there is a good copy; `has_better`
    is true where a pool has another state to take."""
    restore = tuple(one.path for one in found if one.path in copies)
    lost = [one for one in found if one.path not in copies and one.path not in emptied.bad]
    if has_better and (emptied.bad or emptied.held or any(one.loss >= Loss.NAMES for one in lost)):
        return Plan(leave=True)
    if in_pool and emptied.short:  # the layer may be others', too, and nothing can be written there
        return Plan(leave=True)
    surely = [one for one in lost if one.silent or in_pool]
    others = [one for one in lost if one not in surely]
    proven = [*emptied.bad, *(_build_cache(storage) if emptied.cached else [])]
    proven += [path for one in surely for path in _goes_with(one, storage)]
    costs = (
        [Loss.NOTHING] * bool(restore or emptied.short)
        + [Loss.LAYERS] * bool(emptied.bad)
        + [Loss.CACHE] * emptied.cached
    )
    return Plan(
        restore,
        _unique(proven),
        _unique([path for one in others for path in _goes_with(one, storage)]),
        at_once=max([*costs, *(one.loss for one in surely)], default=None),
        later=max((one.loss for one in others), default=None),
    )


def _unique(places: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(places))


def _goes_with(one: Damage, storage: StoragePlan) -> list[str]:
    """The damaged thing, and what would mislead an engine without it, such as BuildKit's records of layers."""
    if one.loss is Loss.IMAGES:
        if storage.store is ImageStore.CONTAINERD:
            return ["containerd", *_build_cache(storage)]
        # One layer that is gone takes what lies on it; the build cache may refer to it, too.
        return [one.path, *_build_cache(storage)]
    return [one.path, *(_build_cache(storage) if one.loss is Loss.CACHE else [])]


def _build_cache(storage: StoragePlan) -> list[str]:
    """All files in which BuildKit refers to results. They refer to each other, so they go together. The worker's name
    stays: without it the next start would drop the build cache once more."""
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
