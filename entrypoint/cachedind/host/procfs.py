"""Parsers of /proc, and thin readers around them."""

from __future__ import annotations

import os
import re

from cachedind.base.model import Mount

_ESCAPE = re.compile(r"\\([0-7]{3})")
_CONTAINER_ID = re.compile(r"/([0-9a-f]{64})(?:/|$)")


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts, in the order of the file: a later one lies on top of an earlier one at the same place.

    Of all that may end a line elsewhere (a carriage return, U+2028), the kernel escapes the newline alone.
    """
    return [mount for line in text.split("\n") if (mount := _parse_mount(line)) is not None]


def _parse_mount(line: str) -> Mount | None:
    before, separator, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")
    if not separator or len(left) < 6 or len(right) < 2:
        return None
    return Mount(
        mount_point=_unescape(left[4]),
        root=_unescape(left[3]),
        fstype=right[0],
        source=_unescape(right[1]),
        options=frozenset(left[5].split(",")),
        super_options=frozenset(right[2].split(",")) if len(right) > 2 else frozenset(),
    )


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def find_mount(mounts: list[Mount], path: str) -> Mount | None:
    """The mount that `path` (absolute, without links) lies on: the longest mount point, the last where several
    match.
    """
    best: Mount | None = None
    for mount in mounts:
        if is_below(path, mount.mount_point) and (best is None or len(mount.mount_point) >= len(best.mount_point)):
            best = mount
    return best


def is_below(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or lies below it."""
    return path == parent or parent == "/" or path.startswith(parent + "/")


def read_mounts() -> list[Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse_mountinfo(file.read())


def read_mount_id(fd: int) -> int:
    """Which mount an open file was reached through (proc_pid_fdinfo(5)): st_dev cannot tell a subvolume from a mount,
    nor a bind mount from a directory.
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return int(file.read().partition("mnt_id:")[2].split()[0])


def parse_effective_capabilities(status: str) -> int:
    """The CapEff mask of a /proc/PID/status text."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return int(match.group(1), 16) if match else 0


def read_effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return parse_effective_capabilities(file.read())


def parse_rights(status: str, uid_map: str, label: str) -> str | None:
    """What a process may do, as one line, from its /proc/PID/status, uid_map and attr/current; None under seccomp,
    whose rules nobody can read."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    told = {name: fields.get(name, "").strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
    if told.pop("Seccomp") not in ("0", ""):
        return None
    words = [f"{name} {value}" for name, value in told.items()]
    return ", ".join([*words, f"users {' '.join(uid_map.split())}", f"label {label.strip(chr(0) + chr(10)) or '-'}"])


def read_rights() -> str | None:
    """Raises OSError."""
    try:
        with open("/proc/self/attr/current", encoding="utf-8", errors="surrogateescape") as file:
            label = file.read()
    except OSError:  # no security module has one
        label = ""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        status = file.read()
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return parse_rights(status, f"{os.readlink('/proc/self/ns/user')} {file.read()}", label)


def read_boot_id() -> str:
    """The kernel's random name for the time since it booted: another one means that the host went down in between."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def parse_container_id(mounts: list[Mount]) -> str | None:
    """The outer engine's name of this container: it is in the path behind the /etc/hostname that the engine mounts."""
    for mount in mounts:
        if mount.mount_point in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
            match = _CONTAINER_ID.search(mount.root)
            if match:
                return match.group(1)
    return None


def is_full_user_namespace(uid_map: str) -> bool:
    """Whether a /proc/PID/uid_map text is that of the initial user namespace, which maps every user to itself."""
    return uid_map.split() == ["0", "0", "4294967295"]


def read_is_full_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return is_full_user_namespace(file.read())


def read_cgroup_v2_path() -> str | None:
    """This process's path in the cgroup v2 hierarchy as it sees it, or None when there is none."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        return parse_cgroup_v2_path(file.read())


def parse_cgroup_v2_path(text: str) -> str | None:
    for line in text.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def read_argv(pid: int) -> list[str]:
    """A process's command line; nothing of one that is gone, or of a kernel's own."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []


def hostname() -> str:
    return os.uname().nodename
