"""What a start says about damage: what was found and mended, what was moved away and where to, what was left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachedind.base.model import Degradation

if TYPE_CHECKING:
    from cachedind.base.log import Log
    from cachedind.base.model import Remap
    from cachedind.engine.doubt import Doubt
    from cachedind.engine.mending import Mended


def tell_untold(root_fd: int, log: Log) -> None:
    """A start that moved things away was killed before it could say so, or could not move all of them."""
    from cachedind.engine import aside

    untold = [one for one in aside.read(root_fd) if not one.told]
    for one in untold:
        log.warn(
            f"an earlier start ended while it moved {_shown(one.paths)} away ({one.why}): what is missing is in "
            f"{one.name}; cachedind doctor tells how to put it back or delete it"
        )
    aside.note_told(root_fd, [one.name for one in untold])


def tell(result: Mended, remap: Remap | None, doubted: Doubt | None, *, in_pool: bool, log: Log) -> None:
    """Say what was found of damage and what became of it; `remap` is needed for names as people see them."""
    _tell_what_stays(result, doubted, log)
    if result.loss is None and result.fit:
        return
    what = "the data was damaged, and is mended" if result.fit else "the data is damaged, and could not be mended"
    if result.refused:
        what = "the data is damaged, and nothing of it was changed"
    log.degraded(Degradation(what, result.why, result.cost, _hint(_named(result, remap), in_pool=in_pool)))


def _tell_what_stays(result: Mended, doubted: Doubt | None, log: Log) -> None:
    if result.unproven:
        log.warn(f"the data could not be proven, and is used as it is: {result.unproven}")
    if result.left:
        log.warn(
            f"some of the data is damaged: {result.left}; it is left as it is, because a daemon comes up on it. If "
            "builds or images fail: remove the images and pull, load or build them again, and run docker builder prune"
        )
    if result.unpinned:
        log.warn(
            "after a crash of the host, layers of images that earlier jobs had are not kept from prunes: "
            f"{result.unpinned}. What a prune removes is pulled or built again; free space on the pool's volume"
        )
    if result.unchecked:
        log.warn(
            f"after a crash of the host, files of layers may be empty; not checked: {'; '.join(result.unchecked)}. "
            "If something built from them is wrong: run docker builder prune, or pull the image again"
            + "; the data stays in doubt, and the next start goes on looking"
            * result.late
        )
    is_fine = result.fit and not (result.unproven or result.left or result.late)
    if result.loss is None and doubted is not None and is_fine:
        log.info(f"{doubted.why}: the data was checked, and a private daemon came up on it")


def _hint(result: Mended, *, in_pool: bool) -> str:
    places = ", ".join(f"{moved.name} ({_shown(moved.paths)})" for moved in result.moved)
    hint = f"what was moved away is in {places}" if places else "a start without CACHEDIND_STRICT mends it"
    if result.rewritten:
        rewritten = f"{result.rewritten} files were restored from the images' compressed layers"
        hint = f"{rewritten}; {hint}" if places else rewritten
    if places and not in_pool:
        hint += "; cachedind doctor tells how to put it back or delete it"
    return hint


def _named(result: Mended, remap: Remap | None) -> Mended:
    """With names as people find them from the data-root."""
    below = f"{remap.directory}/" if remap else ""
    return result._replace(moved=tuple(one._replace(name=f"{below}{one.name}") for one in result.moved))


def _shown(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + ", …" * (len(paths) > 3)
