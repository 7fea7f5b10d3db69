"""Which data-roots are slots of a pool, by what mountinfo says of them."""

from __future__ import annotations

import pytest

from cachedind.base.model import Mount
from cachedind.start.restart import is_slot

SLOT = "/keys/group%2Fproject/slots/0123456789ab/data"


def mount(point: str, root: str) -> Mount:
    return Mount(point, root, "ext4", "/dev/sda1", frozenset(), frozenset())


@pytest.mark.parametrize(
    ("root", "point", "data_root", "expected"),
    [
        ("/srv/pool" + SLOT, "/var/lib/docker", "/var/lib/docker", True),
        (SLOT, "/var/lib/docker", "/var/lib/docker", True),
        ("/var/lib/docker/volumes/pool/_data/keys/k/scopes/%/golden/data", "/var/lib/docker", "/var/lib/docker", True),
        ("/keys/k/scopes/build/golden.previous/data", "/data", "/data", True),
        ("/srv/pool", "/cachedind", "/cachedind" + SLOT, True),
        # A daemon nested in a job's container has a volume below a slot; that is its own.
        (f"/srv/pool{SLOT}/volumes/v/_data", "/var/lib/docker", "/var/lib/docker", False),
        (SLOT, "/data", "/data/sub", False),
        ("/var/lib/docker/volumes/v/_data", "/var/lib/docker", "/var/lib/docker", False),
        ("/srv/keys/k/slots/name/data", "/var/lib/docker", "/var/lib/docker", False),
        ("/", "/", "/var/lib/docker", False),
        ("/", "/", "/keys/k/slots/0123456789ab/data", True),
    ],
)
def test_what_is_a_slot(root: str, point: str, data_root: str, expected: bool) -> None:
    assert is_slot([mount("/", "/"), mount(point, root)], data_root) is expected


def test_the_mount_on_top_counts() -> None:
    below, above = mount("/var/lib/docker", SLOT), mount("/var/lib/docker", "/volumes/v/_data")
    assert is_slot([below, above], "/var/lib/docker") is False
    assert is_slot([above, below], "/var/lib/docker") is True
