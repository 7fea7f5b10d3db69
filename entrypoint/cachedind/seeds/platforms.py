"""Whether an image is for this machine, and which of several is the best one for it."""

from __future__ import annotations

import os
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.documents import DIGEST, mapping, parse, strings
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv8l": "arm/v8",
    "armv7l": "arm/v7",
    "armv6l": "arm/v6",
    "i686": "386",
    "i386": "386",
    "loongarch64": "loong64",
}
_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm/v7", "armel": "arm/v6"}


def machine_platform(machine: str) -> str:
    """The platform of a machine as uname names it: "x86_64" → "linux/amd64", "armv7l" → "linux/arm/v7"."""
    return f"linux/{_MACHINES.get(machine, machine)}"


def machine() -> str:
    return machine_platform(os.uname().machine)


def platform_of(value: Mapping[str, object]) -> str | None:
    """ "linux/arm/v7" of a descriptor's platform or a configuration; None if it does not say."""
    system, architecture, variant = (value.get(key) for key in ("os", "architecture", "variant"))
    if not isinstance(system, str) or not isinstance(architecture, str) or not system or not architecture:
        return None
    architecture = _ARCHITECTURES.get(architecture, architecture)
    parts = [system, architecture, variant if isinstance(variant, str) and "/" not in architecture else ""]
    return "/".join(filter(None, parts))


def rank(platform: str, here: str) -> int:
    """How well an image's platform fits a machine's: 0 is not at all, more is better. Pure.

    An arm machine runs what is for its own variant or an older one; one without a variant is v7 (containerd,
    platforms/database.go). Of others a plain one is the best, and a variant may do.
    """
    theirs, ours = ([*name.split("/"), ""][:3] for name in (platform, here))
    if theirs[:2] != ours[:2]:
        return 0
    if ours[1] == "arm":
        version, limit = (int(re.sub(r"\D", "", variant)[:3] or 7) for variant in (theirs[2], ours[2]))
        return version if version <= limit else 0
    return 2 if theirs[2] in ("", "v1" if ours[1] == "amd64" else "v8") else 1


def choose_fitting(descriptors: list[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Of several those that fit best, at least one, and then those that do not say what they are for. Raises
    SeedError."""
    if not descriptors:
        raise SeedError("its index is empty")
    here = machine()
    platforms = [platform_of(mapping(descriptor.get("platform"))) for descriptor in descriptors]
    ranks = [0 if platform is None else rank(platform, here) for platform in platforms]
    best = max(ranks)
    chosen = [each for each, fits in zip(descriptors, ranks, strict=True) if fits == best > 0]
    chosen += [each for each, platform in zip(descriptors, platforms, strict=True) if platform is None]
    if not chosen:
        raise other_platform(dict.fromkeys(filter(None, platforms)), here)
    return chosen


def other_platform(platforms: Iterable[str], here: str) -> SeedError:
    return SeedError(f"it is for {shown(', '.join(platforms))}, and this machine is {here}")


def read_diff_ids(raw: bytes, layers: int) -> list[str]:
    """The diff IDs in an image's configuration, one for each layer. Raises SeedError, also for another platform."""
    config = mapping(parse(raw, "its configuration"))
    platform, here = platform_of(config), machine()
    if platform is not None and not rank(platform, here):
        raise other_platform([platform], here)
    diff_ids = strings(mapping(config.get("rootfs")).get("diff_ids"), "diff_ids")
    if len(diff_ids) != layers:
        raise SeedError(f"it has {layers} layers, and its configuration names {len(diff_ids)}")
    for diff_id in diff_ids:
        if not DIGEST.fullmatch(diff_id):
            raise SeedError(f"a diff ID in its configuration is not a sha256 digest: {shown(diff_id)}")
    return diff_ids
