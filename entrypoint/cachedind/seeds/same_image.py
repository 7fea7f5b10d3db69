"""Whether two image stores have the same image: what a daemon tells of one, and what a store holds. Pure.

An image's ID is the digest of its configuration where graph drivers keep it, and that of its manifest or index where
containerd does (moby, daemon/containerd/image.go), so that IDs alone do not tell whether two stores have the same.
"""

from __future__ import annotations

import json
import re

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_RUN_FIELDS = ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "StopSignal", "OnBuild", "Shell")
_SET_FIELDS = ("ExposedPorts", "Volumes")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")


def shares_digest(
    inspected: Mapping[str, object], repo_digests: Iterable[str], configuration: Mapping[str, object]
) -> bool:
    """Whether both came from the same manifest or index of a registry, and are for the same platform. Pure."""
    theirs = inspected.get("RepoDigests")
    digests = {item.rpartition("@")[2] for item in theirs if isinstance(item, str)} if isinstance(theirs, list) else ()
    if not any(item.rpartition("@")[2] in digests for item in repo_digests):
        return False
    *theirs_basic, their_variant = _platform(inspected, "Os", "Architecture", "Variant")
    *ours_basic, our_variant = _platform(configuration, "os", "architecture", "variant")
    # An index may have an image for each of arm's variants; not every image names its own.
    return theirs_basic == ours_basic and (their_variant == our_variant or None in (their_variant, our_variant))


def is_same_image(inspected: Mapping[str, object], configuration: Mapping[str, object]) -> bool:
    """Whether an answer to GET /images/…/json and an image's configuration (OCI image specification, config.md) are of
    the same image, whatever stores the two are in. Images that differ in what a container sees never count. Pure.

    Engines show the same configuration differently: 28 and later leave empty fields out, older ones show them as null,
    "" or [], together with fields that only containers have.
    """
    try:
        theirs, ours = _of_inspection(inspected), _of_configuration(configuration)
        return bool(inspected.get("Os") and inspected.get("Architecture")) and theirs == ours
    except RecursionError:
        return False


def _of_inspection(inspected: Mapping[str, object]) -> tuple[object, ...]:
    layers = _mapping(inspected.get("RootFS")).get("Layers")
    platform = _platform(inspected, "Os", "Architecture", "Variant")
    return layers or None, _moment(inspected.get("Created")), platform, _run_fields(inspected.get("Config"))


def _of_configuration(configuration: Mapping[str, object]) -> tuple[object, ...]:
    layers = _mapping(configuration.get("rootfs")).get("diff_ids")
    platform = _platform(configuration, "os", "architecture", "variant")
    return layers or None, _moment(configuration.get("created")), platform, _run_fields(configuration.get("config"))


def _platform(values: Mapping[str, object], *fields: str) -> tuple[object, ...]:
    return tuple(values.get(field) or None for field in fields)


def _run_fields(value: object) -> dict[str, object]:
    """What containers get from an image, without what is empty."""
    config = _mapping(value)
    found = {field: config.get(field) for field in _RUN_FIELDS}
    # Sets in the guise of an object whose values mean nothing: {"80/tcp": {}}.
    found.update({field: sorted(_mapping(config.get(field))) for field in _SET_FIELDS})
    found["Healthcheck"] = {field: item for field, item in _mapping(config.get("Healthcheck")).items() if item}
    return {field: item for field, item in found.items() if item}


def _moment(value: object) -> object:
    """A time of RFC 3339 so that two spellings of one are equal. The year 1 is Go's word for none."""
    match = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value or None
    from datetime import datetime

    try:
        seconds = datetime.fromisoformat(match[1].upper() + match[3].upper()).timestamp()
    except (ValueError, OverflowError, OSError):
        return value
    fraction = (match[2] or "").rstrip("0")
    return None if match[1].startswith("0001-01-01") and not fraction else (seconds, fraction)


def parse_configuration(raw: bytes) -> Mapping[str, object]:
    """An image's configuration, empty if it is malformed."""
    try:
        return _mapping(json.loads(raw))
    except (ValueError, RecursionError):
        return {}


def diff_ids_of(configuration: Mapping[str, object]) -> tuple[str, ...]:
    """The layers that a configuration names, the lowest first; none if it is malformed."""
    layers = _mapping(configuration.get("rootfs")).get("diff_ids")
    return tuple(item for item in layers if isinstance(item, str)) if isinstance(layers, list) else ()


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
