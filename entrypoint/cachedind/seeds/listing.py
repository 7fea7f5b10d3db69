"""Images as an archive lists them, in either format, merged: each image once, with all its names. Pure."""

from __future__ import annotations

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine.image_names import canonical, familiar, is_name
from cachedind.seeds.quoting import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachedind.seeds.model import SeedImage

MAX_IMAGES = 1000


class ListedImage(NamedTuple):
    """An image as an archive lists it, with its names as written there: `tags` are names without a repository.

    `image` is None where something is wrong with it: `why`. `listed` tells that manifest.json has it.
    """

    label: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    listed: bool
    image: SeedImage | None
    why: str = ""


def settle(entries: list[ListedImage], fallback_name: str) -> tuple[tuple[SeedImage, ...], tuple[tuple[str, str], ...]]:
    """Each image once, with all its names, and what is wrong with the others. Pure."""
    merged: dict[tuple[str, bytes | None], list[ListedImage]] = {}
    for entry in entries:
        if entry.image is not None:
            merged.setdefault((entry.image.config_digest, entry.image.manifest), []).append(entry)
    images: list[SeedImage] = []
    bad: list[tuple[str, str]] = []
    taken: set[str] = set()
    for same in merged.values():
        names, why = _names(same, fallback_name, taken)
        taken.update(names)
        if why:
            bad.append((same[0].label, why))
        elif same[0].image is not None:
            images.append(same[0].image._replace(names=names))
    complete = any(entry.listed for entry in entries) and all(entry.image for entry in entries if entry.listed)
    for entry in entries:
        if entry.image is None and not _is_made_up_for(entry, entries, complete):
            bad.append((entry.label, entry.why))
    return tuple(images), tuple(bad)


def _is_made_up_for(bad: ListedImage, entries: list[ListedImage], complete: bool) -> bool:
    """Whether an image that is bad in one format is there in the other one."""
    if not bad.names:
        return complete and not bad.listed
    others = [entry for entry in entries if entry.image is not None and entry.listed != bad.listed]
    names = {canonical(name) for entry in others for name in entry.names}
    return not names.isdisjoint(map(canonical, bad.names))


def _names(entries: list[ListedImage], fallback_name: str, taken: set[str]) -> tuple[tuple[str, ...], str]:
    """The canonical names of one image, and what is wrong with all of them."""
    given = dict.fromkeys(name for entry in entries for name in entry.names)
    if not given and fallback_name and not any(entry.listed for entry in entries):
        tags = dict.fromkeys(tag for entry in entries for tag in entry.tags) or {"latest": None}
        made = [canonical(f"{fallback_name}:{tag}") for tag in tags]
        if not any(map(is_name, made)):
            return (
                (),
                f"it has no name, and its file's name cannot be one: {shown(f'{fallback_name}:{next(iter(tags))}')}",
            )
        # Only one of several images without a name can have the file's.
        return tuple(name for name in made if is_name(name) and name not in taken), ""
    good = tuple(dict.fromkeys(name for name in map(canonical, given) if is_name(name)))
    if given and not good:
        return (), f"none of its names is valid: {', '.join(map(shown, given))}"
    return good, ""


def label_of(names: Iterable[str], number: int) -> str:
    shorter = [shown(familiar(canonical(name))) for name in names]
    return ", ".join(shorter) if shorter else f"image {number}"
