"""Real filesystems for tests that run on this machine: made, mounted where nobody else sees it, and gone afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachedind.host import procfs

MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
FSTYPES = (*MKFS, "tmpfs", "ramfs", "overlay")


def mount_points() -> list[tuple[str, str]]:
    """Where what is mounted, as this process sees it."""
    return sorted((mount.mount_point, mount.fstype) for mount in procfs.read_mounts())


class Filesystems:
    """Makes filesystems below a directory, in a private mount namespace."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mounted: list[Path] = []
        self._images: list[Path] = []
        self._count = 0

    def make(self, fstype: str, *, size_mib: int = 512, mkfs: list[str] | None = None, options: str = "") -> Path:
        """A new filesystem's mount point. `mkfs` are more arguments for mkfs, `options` mount options.

        The overlay lies on a tmpfs, so that it works whatever this machine's own root filesystem is.
        """
        self._count += 1
        here = self._directory / f"{self._count}-{fstype}"
        target = here / "mnt"
        target.mkdir(parents=True)
        if fstype in MKFS:
            image = here / "image"
            self._images.append(image)
            with image.open("wb") as file:
                file.truncate(size_mib << 20)
            _run(*MKFS[fstype], *(mkfs or []), str(image))
            # mount(8) makes the loop device one that goes with its last user.
            self._mount(target, "-t", fstype, "-o", ",".join(filter(None, ["loop", options])), str(image))
        elif fstype == "tmpfs":
            self._mount(target, "-t", "tmpfs", "-o", ",".join(filter(None, [f"size={size_mib}m", options])), "tmpfs")
        elif fstype == "ramfs":
            self._mount(target, "-t", "ramfs", "ramfs")
        elif fstype == "overlay":
            layers = self.make("tmpfs", size_mib=size_mib)
            for name in ("lower", "upper", "work"):
                (layers / name).mkdir()
            where = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
            self._mount(target, "-t", "overlay", "-o", where, "overlay")
        else:
            raise ValueError(f"no way to make {fstype}")
        return target

    def _mount(self, target: Path, *arguments: str) -> None:
        _run("mount", *arguments, str(target))
        self._mounted.append(target)

    def make_read_only(self, target: Path) -> None:
        """What a kernel does to a filesystem with errors."""
        _run("mount", "-o", "remount,ro", str(target))

    def fill(self, target: Path) -> None:
        """Leave no byte free."""
        # Allocation of what is left may succeed in small pieces where it fails in large ones.
        with (target / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                while True:
                    try:
                        file.write(b"\0" * size)
                    except OSError:
                        break

    def close(self) -> None:
        """Unmount everything, newest first. Fails when something is still in use."""
        failures = []
        while self._mounted:
            try:
                _run("umount", str(self._mounted.pop()))
            except AssertionError as error:
                failures.append(str(error))
        for image in self._images:
            image.unlink(missing_ok=True)
        assert not failures, "\n".join(failures)


@contextmanager
def filesystems_below(directory: Path) -> Iterator[Filesystems]:
    made = Filesystems(directory)
    try:
        yield made
    finally:
        made.close()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
