"""What the kernel has of nf_tables in this network namespace: asked by netlink(7), as nft(8) and iptables ask."""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_GET_TABLES, _GET_GENERATION = 10 << 8 | 1, 10 << 8 | 16
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE and NFT_MSG_GETGEN (linux/netfilter/nfnetlink.h, nf_tables.h)."""
_NEW_GENERATION = 10 << 8 | 15
_REQUEST, _DUMP = 0x1, 0x300
_DONE = 3
_PATIENCE_S = 1.0


def has_no_tables() -> bool:
    """Whether there are nf_tables, and no table in them. False where there is one, and where the kernel does not say
    so. It loads their module for that, as it does for iptables. Needs CAP_NET_ADMIN. Raises nothing."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(_PATIENCE_S)
            # iptables asks for the generation first, and does not work with a kernel that has none.
            return is_generation(_ask(netlink, _GET_GENERATION, _REQUEST)) and is_end_of_nothing(
                _ask(netlink, _GET_TABLES, _REQUEST | _DUMP)
            )
    except OSError:
        return False


def _ask(netlink: socket.socket, kind: int, flags: int) -> bytes:
    of_all_families = bytes(4)  # struct nfgenmsg
    netlink.send(_HEADER.pack(_HEADER.size + 4, kind, flags, 1, 0) + of_all_families)
    return netlink.recv(4096)


def is_generation(answer: bytes) -> bool:
    """Whether it is an answer to that, and no error. Pure."""
    return len(answer) >= _HEADER.size and _HEADER.unpack_from(answer)[1] == _NEW_GENERATION


def is_end_of_nothing(answer: bytes) -> bool:
    """Whether a dump's first message is its end, without an error. Pure."""
    if len(answer) < _HEADER.size + 4:
        return False
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    error = struct.unpack_from("=i", answer, _HEADER.size)[0]
    return bool(kind == _DONE and error == 0)
