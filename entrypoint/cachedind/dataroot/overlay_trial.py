"""What a trial does with an overlay: use it the way builds and containers do.

A mount that succeeds proves nothing. ramfs, ZFS before 2.2 and bcachefs before RENAME_WHITEOUT accept an overlay mount
on which the first `mv` of a lower file fails. So the trial does what builds do: copy-up, rename, whiteout, opaque
directory, d_type, extended attributes, and a second mount of the same directories.
"""

from __future__ import annotations

import os

from cachedind.host import linux
from cachedind.host.processes import find_program
from cachedind.host.procfs import read_is_full_user_namespace

TIMEOUT_S = 10.0
_PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INDEX_PARAMETER = "/sys/module/overlay/parameters/index"


class Unfit(Exception):
    """A step of a trial did not behave as a container's root filesystem must."""


def lay_out(work: str) -> None:
    for name in ("lower1/dir", "lower2", "upper", "work", "merged"):
        os.makedirs(f"{work}/{name}")
    for name in ("lower1/file", "lower1/gone", "lower1/dir/inner", "lower2/other"):
        with open(f"{work}/{name}", "w", encoding="ascii") as file:
            file.write("lower\n")


def remove_tree(top: str) -> None:
    """Remove a tree of plain files and directories, as a trial makes it."""
    for directory, subdirectories, names in os.walk(top, topdown=False):
        for name in names:
            os.unlink(f"{directory}/{name}")
        for name in subdirectories:
            os.rmdir(f"{directory}/{name}")
    os.rmdir(top)


def overlay_options(work: str, *, full_user_namespace: bool, has_index: bool) -> str:
    """The mount options that dockerd uses: index=off where the kernel knows it, userxattr in a user namespace.

    moby, daemon/graphdriver/overlay2/overlay.go. gVisor refuses options that it does not know.
    """
    options = f"lowerdir={work}/lower1:{work}/lower2,upperdir={work}/upper,workdir={work}/work"
    if has_index:
        options += ",index=off"
    if not full_user_namespace:
        options += ",userxattr"
    return options


def try_overlay(work: str) -> None:
    options = overlay_options(
        work, full_user_namespace=read_is_full_user_namespace(), has_index=os.path.exists(_INDEX_PARAMETER)
    )
    # The mount comes first: an overlay answers it with EINVAL, but mknod of a whiteout in it with EPERM, as if
    # privileges were missing.
    linux.mount("overlay", f"{work}/merged", "overlay", data=options)
    _use_as_root_filesystem(work)
    _check_whiteouts(f"{work}/upper")
    linux.umount(f"{work}/merged")
    _check_upper(f"{work}/upper", xattr="trusted.overlay.opaque")
    linux.mount("overlay", f"{work}/merged", "overlay", data=options)
    _check_after_remount(f"{work}/merged")


def try_fuse_overlayfs(work: str) -> None:
    if not os.path.exists("/dev/fuse"):
        raise Unfit("/dev/fuse is missing: run the container with --privileged or --device /dev/fuse")
    program = find_program("fuse-overlayfs", _PROGRAM_PATH)
    if program is None:
        raise Unfit("the program fuse-overlayfs is not installed")
    options = f"lowerdir={work}/lower1:{work}/lower2,upperdir={work}/upper,workdir={work}/work"
    for check in (_use_as_root_filesystem, lambda work: _check_after_remount(f"{work}/merged")):
        _run_helper([program, "-o", options, f"{work}/merged"])
        check(work)
        linux.umount(f"{work}/merged", linux.MNT_DETACH)


def _run_helper(argv: list[str]) -> None:
    from cachedind.host.processes import run

    result = run(argv, timeout_s=TIMEOUT_S / 2)
    if not result.ok:
        raise Unfit(f"{os.path.basename(argv[0])}: {result.stderr.strip() or f'exit status {result.status}'}")


def _check_upper(upper: str, xattr: str) -> None:
    """What layer extraction does straight in the upper directory: whiteouts as 0:0 devices, overlay's and file
    capabilities.
    """
    sample = f"{upper}/sample"
    os.mkdir(sample)
    os.setxattr(sample, xattr, b"y")
    os.mknod(f"{sample}/whiteout", 0o600 | 0o020000, os.makedev(0, 0))
    with open(f"{sample}/file", "w", encoding="ascii"):
        pass
    # VFS_CAP_REVISION_2 with cap_net_bind_service, as setcap(8) writes it.
    os.setxattr(f"{sample}/file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    check_entry_types(linux.directory_entry_types(sample))
    remove_tree(sample)


def check_entry_types(types: dict[str, int]) -> None:
    """Raises Unfit when directory entries do not carry their type (xfs made with ftype=0): overlay needs d_type."""
    if not types or linux.DT_UNKNOWN in types.values():
        raise Unfit("directory entries carry no d_type (xfs: format it with ftype=1)")


def _use_as_root_filesystem(work: str) -> None:
    merged = f"{work}/merged"
    with open(f"{merged}/new", "w", encoding="ascii") as file:
        file.write("new\n")
    with open(f"{merged}/file", "a", encoding="ascii") as file:
        file.write("upper\n")
    os.rename(f"{merged}/other", f"{merged}/renamed")
    os.chmod(f"{merged}/file", 0o640)
    os.chown(f"{merged}/file", 1, 1)
    os.link(f"{merged}/file", f"{merged}/linked")
    os.unlink(f"{merged}/gone")
    os.unlink(f"{merged}/dir/inner")
    os.rmdir(f"{merged}/dir")
    os.mkdir(f"{merged}/dir")
    _check_after_remount(merged)


def _check_after_remount(merged: str) -> None:
    names = set(os.listdir(merged))
    if names != {"new", "file", "linked", "renamed", "dir"}:
        raise Unfit(f"files that were removed or renamed show up again: {', '.join(sorted(names))}")
    if os.listdir(f"{merged}/dir"):
        raise Unfit("a removed and re-made directory shows its old content")
    with open(f"{merged}/file", encoding="ascii") as file:
        if file.read() != "lower\nupper\n":
            raise Unfit("a changed file has lost its content")


def _check_whiteouts(upper: str) -> None:
    found = os.lstat(f"{upper}/gone")
    if found.st_rdev != os.makedev(0, 0) or linux.directory_entry_types(upper)["gone"] != linux.DT_CHR:
        raise Unfit("a removed file left no whiteout")
