"""The JSON documents in a seed: read whole, and their fields checked before anybody believes them."""

from __future__ import annotations

import json
import re

from cachedind.base.typed import TYPE_CHECKING
from cachedind.seeds.model import SeedError
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachedind.seeds.members import Members
    from cachedind.seeds.model import Content

MAX_JSON_BYTES = 8 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def find_json(members: Members, name: str) -> object | None:
    content = members.find(name)
    return None if content is None else parse(read_small(content, name), f"its {name}")


def read_small(content: Content, what: str) -> bytes:
    if content.size_bytes > MAX_JSON_BYTES:
        raise SeedError(f"{what} has {content.size_bytes} bytes, and more than {MAX_JSON_BYTES} are not read")
    return b"".join(content.chunks())


def parse(raw: bytes, what: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise SeedError(f"{what} is not JSON") from None


def mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def descriptors_in(value: object, key: str, where: str) -> list[Mapping[str, object]]:
    found = mapping(value).get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SeedError(f"{where} has a malformed list of {key}")
    return found


def strings(value: object, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SeedError(f"its {what} are not a list of strings")
    return value


def digest_of(descriptor: Mapping[str, object]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise SeedError(f"a digest in it is not a sha256 digest: {shown(digest)}")
    return digest


def short(digest: str) -> str:
    return f"{digest[:19]}…"
