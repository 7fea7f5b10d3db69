"""Whether a start wants seeds, and where they are: all that most starts ask about them."""

from __future__ import annotations

import os

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.settings.config import Config

DEFAULT_SEEDS = "/seeds"


def read_patterns(settings: Config) -> tuple[str, ...]:
    """The paths and globs at which seeds are: the settings', or /seeds where there is such a directory."""
    if settings.seed is not None:
        return settings.seed
    return (DEFAULT_SEEDS,) if os.path.isdir(DEFAULT_SEEDS) else ()


def wants_seeds(settings: Config) -> bool:
    return bool(settings.seed_host or read_patterns(settings))
