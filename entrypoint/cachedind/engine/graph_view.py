"""The fresh view with graph drivers, offline (fresh_images.py):

    image/<driver>/repositories.json          only names that the next job is to see
    image/<driver>/imagedb/content/sha256/…   configurations: those of other images move to .cachedind/unused/
    image/<driver>/imagedb/metadata/sha256/…  goes with them (times of tags; parents, of the classic builder alone)
    image/<driver>/layerdb, distribution      stay: a pull finds each layer there ("Already exists")
    image/<driver>/layerdb/mounts/cachedind-… a pin: as if a container was on that image (pins.py)
    containerd/daemon/                        content and its records go: with graph drivers only manifests, by which a
                                              pull by digest asks no registry (moby, distribution/manifest.go)

An engine counts who uses a layer when it starts, and removes one when the last user lets go. Images go, and a prune of
the build cache lets go as well: so a pin for each image is one more user, of which nobody knows but the engine's layer
store. It is the engine, too, that removes what is to go: the records are put back, the pins taken away, and its API is
asked (moby, image/store.go).
Tried with 26.1 and 28.5.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, NamedTuple

from cachedind.base.state import parse_object
from cachedind.base.trace import NOWHERE
from cachedind.engine import fresh_images, paths, pins
from cachedind.engine.fresh_images import Unused
from cachedind.engine.image_names import canonical, familiar
from cachedind.engine.images import chain_ids
from cachedind.engine.store_files import DIGEST, digits, mapping, read
from cachedind.host import beneath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachedind.base.trace import Trace
    from cachedind.engine.fresh_images import View

UNUSED = ".cachedind/unused"
"""Configurations of images that no job sees, each under the digits of its digest."""
_MAX_BYTES = 16 << 20
"""Of the file with all names."""

Repositories = dict[str, dict[str, str]]


class Plan(NamedTuple):
    """What becomes of the records: the names that stay, and the configurations that go out of sight (with the names
    that they had), and come back into it."""

    repositories: Repositories
    hidden: Mapping[str, tuple[str, ...]]
    shown: frozenset[str]


def plan_view(before: Repositories, there: frozenset[str], unused: frozenset[str], view: View) -> Plan:
    """Pure. `there` are the configurations that the engine has, `unused` those that were put away."""
    names = {name: config for name, config in view.names.items() if config in there | unused}
    stay = (view.ids & there) | frozenset(names.values())
    after: Repositories = {}
    had: dict[str, list[str]] = {config: [] for config in there - stay}
    for repository, references in before.items():
        for name, config in references.items():
            if config in view.ids and canonical(name) not in names:
                after.setdefault(repository, {})[name] = config
            elif config in had:
                had[config].append(name)
    for full, config in names.items():
        name = familiar(full)
        after.setdefault(name.rpartition(":")[0], {})[name] = config
    return Plan(after, {config: tuple(found) for config, found in had.items()}, stay & unused - there)


class GraphView:
    def __init__(self, root_fd: int, driver: str, trace: Trace = NOWHERE) -> None:
        self._trace = trace
        self._root_fd = root_fd
        self._driver = driver
        self._configurations = paths.configurations(driver)
        self._metadata = paths.image_metadata(driver)

    def plan(self, view: View) -> Plan:
        """What there is to do."""
        return plan_view(self._read_names(), self.shown(), self.unused() if view.names else frozenset(), view)

    def apply(self, plan: Plan, used_at: Mapping[str, float]) -> None:
        """Do it; `used_at` tells when a job had each of the hidden last. A kill amid that leaves the rest to the next
        start. Raises OSError."""
        if plan.hidden:
            going = {image_id: Unused(used_at[image_id], names) for image_id, names in plan.hidden.items()}
            fresh_images.add_unused(self._root_fd, going, keep=self.unused())
            self._trace.reach("view.noted")
            pins.add(self._root_fd, self._driver, self._tops_of(self._configurations, plan.hidden))
            self._forget_manifests()
        if plan.repositories != self._read_names():
            self._write_names(plan.repositories)
            self._trace.reach("view.named")
        pins.remove(self._root_fd, self._driver, plan.shown)
        self._move(plan.shown, UNUSED, self._configurations)
        self._move(frozenset(plan.hidden), self._configurations, UNUSED)
        self._trace.reach("view.moved")
        self._remove_metadata(frozenset(plan.hidden))

    def bring_back(self, ids: frozenset[str]) -> None:
        """Give an engine the records of unused images again, to have it remove some of them. Raises OSError."""
        pins.remove(self._root_fd, self._driver, ids)
        self._move(ids & self.unused(), UNUSED, self._configurations)

    def mend_pins(self) -> None:
        """Make those anew that a crash of the host has emptied, or that a killed start has only taken away for that.
        Raises OSError."""
        pins.remove(self._root_fd, self._driver, pins.find_emptied(self._root_fd, self._driver))
        unused = self.unused()
        if unused:
            pins.add(self._root_fd, self._driver, self._tops_of(UNUSED, unused))

    def unused(self) -> frozenset[str]:
        """The IDs of all that no job sees."""
        return self._configs_in(UNUSED) - self.shown()

    def shown(self) -> frozenset[str]:
        """The IDs of all that a job sees."""
        return self._configs_in(self._configurations)

    def sizes_of(self, path: str, image_id: str) -> dict[str, int]:
        """Bytes of an image's layers as the engine counts them, by chain ID, from its configuration in the directory
        `path`; none where it cannot be read."""
        sizes: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError), beneath.directory(self._root_fd, path) as directory_fd:
            for chain_id in _chains_in(directory_fd, image_id):
                record = f"{paths.layer_records(self._driver)}/{digits(chain_id)}"
                sizes[chain_id] = int(read(self._root_fd, f"{record}/size"))
        return sizes

    def forget(self, ids: frozenset[str]) -> None:
        """Drop the records of unused images: an engine has removed them, or their layers were not there. Raises
        OSError."""
        pins.remove(self._root_fd, self._driver, ids)
        with beneath.made_directory(self._root_fd, UNUSED) as unused_fd:
            for config in ids & self._configs_in(UNUSED):
                os.unlink(digits(config), dir_fd=unused_fd)

    def _read_names(self) -> Repositories:
        """What cannot be read has no names: an engine would not start with it."""
        with contextlib.suppress(OSError, ValueError):
            raw = parse_object(beneath.read(self._root_fd, paths.references(self._driver), _MAX_BYTES))
            return {
                repository: {name: str(config) for name, config in mapping(references).items()}
                for repository, references in mapping(raw.get("Repositories")).items()
            }
        return {}

    def _write_names(self, repositories: Repositories) -> None:
        with beneath.made_directory(self._root_fd, paths.images(self._driver)) as directory_fd:
            temporary = ".repositories.json.cachedind"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory_fd), "w") as file:
                json.dump({"Repositories": repositories}, file)
            os.rename(temporary, "repositories.json", src_dir_fd=directory_fd, dst_dir_fd=directory_fd)

    def _configs_in(self, path: str) -> frozenset[str]:
        found = (f"sha256:{name}" for name in beneath.names(self._root_fd, path))
        return frozenset(digest for digest in found if DIGEST.fullmatch(digest))

    def _move(self, configs: frozenset[str], source: str, target: str) -> None:
        if not configs:
            return
        with (
            beneath.made_directory(self._root_fd, source) as source_fd,
            beneath.made_directory(self._root_fd, target) as target_fd,
        ):
            for config in configs:
                name = digits(config)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def _tops_of(self, path: str, images: Iterable[str]) -> dict[str, str]:
        """The chain IDs of the uppermost layers of images whose configurations are in the directory `path`, but for
        those that have none, or cannot be read. Raises OSError."""
        tops: dict[str, str] = {}
        with beneath.directory(self._root_fd, path) as directory_fd:
            for image_id in images:
                with contextlib.suppress(OSError, ValueError):
                    chains = _chains_in(directory_fd, image_id)
                    tops.update({image_id: chains[-1]} if chains else {})
        return tops

    def _forget_manifests(self) -> None:
        """Unless the containerd store has been here, too: then these are its images and its build cache."""
        from shutil import rmtree

        if any(beneath.names(self._root_fd, paths.snapshots(name)) for name in ("overlayfs", "native")):
            return
        for path in (paths.CONTENT, os.path.dirname(paths.META)):
            above, _, name = path.rpartition("/")
            with contextlib.suppress(FileNotFoundError), beneath.directory(self._root_fd, above) as fd:
                rmtree(name, dir_fd=fd)

    def _remove_metadata(self, configs: frozenset[str]) -> None:
        from shutil import rmtree

        there = set(beneath.names(self._root_fd, self._metadata)) if configs else set()
        if not there:
            return
        with beneath.made_directory(self._root_fd, self._metadata) as metadata_fd:
            for name in there & set(map(digits, configs)):
                rmtree(name, dir_fd=metadata_fd)


def _chains_in(directory_fd: int, config: str) -> list[str]:
    """The chain IDs of an image's layers, from the lowest. Raises OSError, ValueError."""
    raw = parse_object(read(directory_fd, digits(config)))
    diff_ids = mapping(raw.get("rootfs")).get("diff_ids")
    return chain_ids([str(one) for one in diff_ids]) if isinstance(diff_ids, list) else []
