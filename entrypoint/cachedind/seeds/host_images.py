"""Images of another daemon as seeds: which it has, which of them are wanted, and which of those a store has already."""

from __future__ import annotations

import re

from cachedind.base.typed import TYPE_CHECKING, NamedTuple, Protocol
from cachedind.engine.image_names import canonical, familiar
from cachedind.engine.images import Record, chain_ids
from cachedind.seeds.host_daemon import OWN_SOCKET, ask, parse_json, passing, without_password
from cachedind.seeds.model import BadSeed, Seed, SeedError, SeedKind
from cachedind.seeds.same_image import diff_ids_of, is_same_image, parse_configuration, shares_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MAX_LIST_BYTES = 32 << 20
_MAX_INSPECT_BYTES = 4 << 20
_MAX_SIZE_BYTES = (1 << 63) - 1
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._/:\[\]-]{0,511}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class HostImage(NamedTuple):
    """An image as the other daemon lists it. `tags` are its names as that daemon spells them."""

    id: str
    tags: tuple[str, ...]
    size_bytes: int


class LocalImage(Protocol):
    """An image of the store that is compared with. `names` are canonical, `target` is what they point to: the image's
    ID there. `config` is the configuration's bytes, and `repo_digests` are names with a digest.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def target(self) -> str: ...

    @property
    def config_digest(self) -> str: ...

    @property
    def config(self) -> bytes: ...

    @property
    def repo_digests(self) -> tuple[str, ...]: ...


# ---- which images it has ---------------------------------------------------------------------------------------------


def list_host(
    host: str, patterns: Sequence[str], certs: str = "", own_sockets: Sequence[str] = (OWN_SOCKET,)
) -> tuple[list[Seed], list[BadSeed]]:
    """A seed for each name of an image that a pattern matches, and what is wrong. One request; raises nothing.

    `host` is "unix:///…" or "tcp://…:port", `certs` a directory with ca.pem, cert.pem and key.pem (none: no TLS),
    `own_sockets` are those of our own daemon, which does not answer yet. Takes at most host_daemon.ANSWER_S, and what
    the resolver takes for a name. Needs the right to connect to the socket.
    """
    try:
        images = parse_images(ask(host, certs, "/images/json", _MAX_LIST_BYTES, own_sockets))
    except SeedError as error:
        return [], [BadSeed(without_password(host), str(error))]
    return choose(images, patterns, without_password(host))


def parse_images(raw: bytes) -> list[HostImage]:
    """The images in an answer to GET /images/json. Malformed ones are left out. Raises SeedError."""
    found: list[HostImage] = []
    value = parse_json(raw)
    if not isinstance(value, list):
        raise passing("its answer is not a list of images: is it a docker daemon?")
    for item in value:
        if not isinstance(item, dict):
            continue
        image_id, tags, size = item.get("Id"), item.get("RepoTags"), item.get("Size")
        if not isinstance(image_id, str) or not _DIGEST.fullmatch(image_id) or not isinstance(tags, list):
            continue
        known = tuple(tag for tag in tags if isinstance(tag, str) and _TAG.fullmatch(tag))
        size_bytes = size if isinstance(size, int) and 0 <= size <= _MAX_SIZE_BYTES else 0
        found.append(HostImage(image_id, known, size_bytes))
    return found


def choose(images: Iterable[HostImage], patterns: Iterable[str], host: str) -> tuple[list[Seed], list[BadSeed]]:
    """The seeds in the order of the patterns, and the patterns that nothing matches. Pure."""
    tags = sorted((tag, image) for image in images for tag in image.tags)
    seeds: dict[str, Seed] = {}
    bad: list[BadSeed] = []
    for pattern in patterns:
        if "@" in pattern:
            why = "images are seeded by tag, because a digest is lost on the way: name one of its tags"
            bad.append(BadSeed(pattern, why))
            continue
        matching = [(tag, image) for tag, image in tags if matches(tag, pattern)]
        for tag, image in matching:
            name = canonical(tag)
            seeds.setdefault(name, Seed(SeedKind.HOST, tag, f"host:{image.id} {name}", image.size_bytes))
        if not matching:
            why = f"{host} has no such image: pull or build it there, or remove it from CACHEDIND_SEED_IMAGES"
            bad.append(BadSeed(pattern, why))
    return list(seeds.values()), bad


def matches(tag: str, pattern: str) -> bool:
    """Whether a name is meant by a pattern, both with or without docker.io/library/. `*` also stands for `/` and `:`;
    a pattern without one that has no tag means :latest."""
    from fnmatch import fnmatchcase

    if not any(character in pattern for character in "*?["):
        return canonical(tag) == canonical(pattern)
    full = canonical(tag)
    return any(fnmatchcase(name, pattern) for name in {tag, full, full.removeprefix("docker.io/"), familiar(full)})


# ---- which of them a store has ---------------------------------------------------------------------------------------


def find_held(host: str, seeds: Iterable[Seed], local: Iterable[LocalImage], certs: str = "") -> dict[str, Record]:
    """Those of `seeds` that a store has although its ledger does not know them, by identity: it pulled or built them.

    Only an image with the seed's name counts. Asks the other daemon about each image that is not known by its ID, so it
    is only called when something is missing; an image about which that daemon does not answer does not count. Raises
    only what `local` raises.
    """
    wanted = {canonical(seed.name): seed for seed in seeds}
    found: dict[str, Record] = {}
    for image in local:
        for name in image.names:
            seed = wanted.get(name)
            if seed is None:
                continue
            configuration = parse_configuration(image.config)
            if _is_held(host, certs, id_of(seed), image, configuration):
                diff_ids = diff_ids_of(configuration)
                top_chain = chain_ids(diff_ids)[-1] if diff_ids else ""
                found[seed.identity] = Record((name,), image.config_digest, top_chain)
    return found


def _is_held(host: str, certs: str, image_id: str, image: LocalImage, configuration: Mapping[str, object]) -> bool:
    if image_id in (image.target, image.config_digest):
        return True
    try:
        inspected = parse_json(ask(host, certs, f"/images/{image_id}/json", _MAX_INSPECT_BYTES))
    except SeedError:
        return False
    if not isinstance(inspected, dict):
        return False
    return shares_digest(inspected, image.repo_digests, configuration) or is_same_image(inspected, configuration)


def id_of(seed: Seed) -> str:
    """The ID of a seed's image at the other daemon."""
    return seed.identity.removeprefix("host:").partition(" ")[0]
