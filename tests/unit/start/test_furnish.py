"""Moving on to another slot. With daemons, mending and cleaning are tested in tests/image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cachedind.base.log import Log
from cachedind.base.model import (
    EngineVersion,
    ImageStore,
    Mount,
    StoragePlan,
)
from cachedind.dataroot import facts
from cachedind.dataroot.facts import Place
from cachedind.dataroot.lease import Lease
from cachedind.engine.doubt import SAME_STATE, Doubt
from cachedind.pool.slot_request import SlotRequest
from cachedind.settings import config, daemon_json
from cachedind.settings.arguments import parse_daemon_arguments
from cachedind.start import furnish, pool_mode
from cachedind.start.context import Past, Prepared, StartContext


@pytest.fixture
def requests(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> list[SlotRequest]:
    """What is asked of the pool when a start moves on."""
    found: list[SlotRequest] = []

    def move(taken: object, slot_request: SlotRequest, *rest: object) -> tuple[Lease, None]:
        found.append(slot_request)
        return lease, None

    def settle(context: object, lease: Lease, taken: object, past: Past) -> Prepared:
        return a_leased_slot(lease)._replace(past=past)

    for name in ("move_elsewhere", "move_on"):
        monkeypatch.setattr(pool_mode, name, move)
    monkeypatch.setattr(furnish, "settle", settle)
    monkeypatch.setattr(facts, "read_engine_version", lambda path: EngineVersion(28, 5, 2))
    return found


def a_leased_slot(lease: Lease) -> Prepared:
    taken: Any = SimpleNamespace(slot=SimpleNamespace(id="mine"))
    plan = StoragePlan(ImageStore.GRAPHDRIVER, "overlay2", "")
    place = Place(lease.data_root, Mount("/", "/", "ext4", "/dev/sda", frozenset(), frozenset()), 1, 1, 1, 1)
    return Prepared(lease, taken, place, plan)


def a_context() -> StartContext:
    daemon = daemon_json.DaemonSettings(parse_daemon_arguments([]), {}, "daemon.json")
    return StartContext(config.load({}), daemon, {}, Log())


def test_an_empty_slot_is_taken_after_several_bad_ones(lease: Lease, requests: list[SlotRequest]) -> None:
    prepared = a_leased_slot(lease)
    for _ in range(4):
        assert prepared.taken is not None
        prepared = furnish._move_elsewhere(a_context(), prepared.lease, prepared.taken, "bad", prepared.past)
        assert prepared.past.doubt == Doubt(SAME_STATE), "what is next may be the same, and has to be proven"
    assert [slot_request.fresh for slot_request in requests] == [False, False, False, True]
    assert not any(slot_request.read_only for slot_request in requests)


def test_what_is_not_proven_bad_stays_and_an_empty_slot_does_not_come_before_it(
    lease: Lease, requests: list[SlotRequest]
) -> None:
    prepared = furnish._pass_over(a_context(), a_leased_slot(lease), "is slow")
    prepared = furnish._pass_over(a_context(), prepared, "is slow")
    assert prepared.past.doubt is None
    assert [(slot_request.fresh, slot_request.read_only, slot_request.avoid) for slot_request in requests] == [
        (False, False, frozenset({"mine"})),
        (True, True, frozenset({"mine"})),
    ]
