"""What something in a pool is called."""

from __future__ import annotations

import pytest

from cachedind.base.model import DataRootState, EngineVersion, ImageStore
from cachedind.commands.inventory import Condition, judge, printable
from cachedind.pool.slot_state import Candidate, Kind, SlotState


def slot(sequence: int, *, ready: bool = True, boot_id: str = "b", read_only: bool = False) -> Candidate:
    data = DataRootState(
        EngineVersion(28, 5, 2), ImageStore.GRAPHDRIVER, "overlay2", "btrfs", boot_id, 1.0, 2.0 if ready else None
    )
    return Candidate(Kind.SLOT, f"slots/{sequence}", SlotState(data, "x86_64", sequence, read_only=read_only))


GOLDEN = slot(5)._replace(kind=Kind.GOLDEN, name="scopes/%/golden")


EMPTY = Candidate(Kind.SLOT, "slots/0", SlotState(None, "x86_64", 0))


@pytest.mark.parametrize(
    ("candidate", "held", "had_holder", "expected"),
    [
        (slot(9), True, True, Condition.HELD),
        (slot(1, read_only=True), True, True, Condition.HELD),
        (slot(9, read_only=True), False, True, Condition.THROW_AWAY),
        (slot(4), False, True, Condition.SUPERSEDED),
        (slot(9, ready=False), False, True, Condition.SUSPICIOUS),
        (slot(9, boot_id="other"), False, True, Condition.SUSPICIOUS),
        (slot(5), False, False, Condition.SPARE),
        (slot(5), False, True, Condition.FREE),
        (slot(9), False, True, Condition.FREE),
        (EMPTY, False, True, Condition.SUPERSEDED),
        (GOLDEN, False, False, Condition.GOLDEN),
        (GOLDEN._replace(name="scopes/%/golden.previous"), False, False, Condition.PREVIOUS),
        (GOLDEN._replace(name="scopes/%/golden.other/x"), False, False, Condition.OTHER),
    ],
)
def test_what_something_is(candidate: Candidate, held: bool, had_holder: bool, expected: Condition) -> None:
    assert judge(candidate, [GOLDEN], "b", held=held, had_holder=had_holder) is expected


def test_what_something_is_without_a_golden() -> None:
    assert judge(EMPTY, [], "b", held=False, had_holder=True) is Condition.EMPTY
    assert judge(slot(9, ready=False), [], "b", held=False, had_holder=True) is Condition.SUSPICIOUS


def test_printable_text_stays_as_it_is() -> None:
    assert printable("group/ünïcode 東京 [x]") == "group/ünïcode 東京 [x]"
