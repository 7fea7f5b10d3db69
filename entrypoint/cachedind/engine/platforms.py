"""Which manifest of an index is for this machine. Pure."""

from __future__ import annotations

from cachedind.engine.store_files import mapping

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_VARIANTS: dict[str, tuple[object, ...]] = {
    "x86_64": ("", "v1"),
    "aarch64": ("", "v8"),
    "armv7l": ("v7", "", "v6", "v5"),
    "armv6l": ("v6", "v5"),
}
"""Best first. With arm, no variant means v7 (containerd/platforms, database.go, normalizeArch)."""


def choose_manifest(manifests: object, machine: str) -> str | None:
    """The digest of the manifest for a machine (as uname(2) names it), None when the index has none.

    Attestations are left out: they say so, or are for unknown/unknown (BuildKit, docs/attestations). A manifest that
    names no platform is taken when there is no other.
    """
    variants = _VARIANTS.get(machine, ("",))
    ranked: list[tuple[int, str]] = []
    for item in manifests if isinstance(manifests, list) else ():
        descriptor = mapping(item)
        digest, platform = descriptor.get("digest"), mapping(descriptor.get("platform"))
        if not isinstance(digest, str) or "vnd.docker.reference.type" in mapping(descriptor.get("annotations")):
            continue
        variant = platform.get("variant") or ""
        if not platform:
            ranked.append((len(variants), digest))
        elif (platform.get("os"), platform.get("architecture")) == ("linux", _ARCHITECTURES.get(machine, machine)):
            ranked += [(variants.index(variant), digest)] if variant in variants else []
    return min(ranked, key=lambda found: found[0])[1] if ranked else None
