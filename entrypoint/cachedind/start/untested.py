"""What a start does differently with an engine whose release the tests do not run: it says so, and takes less for
granted."""

from __future__ import annotations

from cachedind.base import releases
from cachedind.base.typed import TYPE_CHECKING
from cachedind.dataroot import facts

if TYPE_CHECKING:
    from cachedind.base.model import ImageStore, StoragePlan
    from cachedind.start.context import StartContext


def tell(context: StartContext) -> None:
    """One line for such an engine: what that costs. Raises ProgramMissingError where there is none."""
    engine = facts.read_engine_version(context.settings.path)
    if not releases.are_tested([engine]):
        context.log.info(
            f"engine {engine} is of a release that cachedind's tests do not run (they run {releases.name_tested()}): "
            "its data is checked only by what no release changes, and a clone takes longer (docs/engines.md)"
        )


def store_to_check(context: StartContext, storage: StoragePlan) -> tuple[ImageStore, str] | None:
    """The store and driver that the engine is told, where it may take others all the same; else None."""
    engine = facts.read_engine_version(context.settings.path)
    is_sure = releases.are_tested([engine]) and not context.daemon.may_migrate
    return None if is_sure else (storage.store, storage.driver)
