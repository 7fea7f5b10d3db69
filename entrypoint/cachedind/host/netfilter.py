"""What the kernel has of nf_tables in this network namespace: asked by netlink(7), as nft(8) and iptables ask."""

from __future__ import annotations

import socket
import struct

_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_GET_TABLES = 10 << 8 | 1
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE (linux/netfilter/nfnetlink.h, nf_tables.h)."""
_REQUEST, _DUMP = 0x1, 0x300
_DONE = 3
_PATIENCE_S = 1.0


def has_no_tables() -> bool:
    """Whether there are nf_tables, and no table in them. False where there is one, and where the kernel does not say
    so. It loads their module for that, as it does for iptables. Needs CAP_NET_ADMIN. Raises nothing."""
    family_and_version = bytes(4)  # struct nfgenmsg: of all families
    question = _HEADER.pack(_HEADER.size + 4, _GET_TABLES, _REQUEST | _DUMP, 1, 0) + family_and_version
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(_PATIENCE_S)
            netlink.send(question)
            return is_end_of_nothing(netlink.recv(4096))
    except OSError:
        return False


def is_end_of_nothing(answer: bytes) -> bool:
    """Whether a dump's first message is its end, without an error. Pure."""
    if len(answer) < _HEADER.size + 4:
        return False
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    error = struct.unpack_from("=i", answer, _HEADER.size)[0]
    return bool(kind == _DONE and error == 0)
