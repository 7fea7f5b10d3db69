"""Doubt: what a start makes of the note that the last one, and its daemon's end, have left."""

from __future__ import annotations

import pytest

from cachedind.base.model import DataRootState, Ended, EngineVersion, ImageStore
from cachedind.engine import doubt
from cachedind.engine.doubt import CRASHED, LOST_NOTE, NEVER_READY, UNPROVEN, Doubt

BOOT, OTHER = "this-boot", "another-boot"
UP = DataRootState(
    EngineVersion(28, 5, 2), ImageStore.GRAPHDRIVER, "overlay2", "ext4", BOOT, 1000.0, ready_at=1001.0, ready_s=1.0
)
DOWN = UP._replace(ready_at=None, ready_s=None)
CLEAN, KILLED, REFUSED = Ended(0, True), Ended(137, False), Ended(1, False)


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        # A clean end is none, whatever has happened to the host since.
        (UP._replace(ended=CLEAN), None),
        (UP._replace(ended=CLEAN, boot_id=OTHER), None),
        # Killed in this boot: what it wrote is there.
        (UP, None),
        (UP._replace(ended=KILLED), None),
        (UP._replace(ended=REFUSED), None),
        (UP._replace(ended=KILLED, boot_id=OTHER), Doubt(CRASHED, True)),
        (UP._replace(boot_id=OTHER), Doubt(CRASHED, True)),
        (DOWN._replace(boot_id=OTHER), Doubt(CRASHED, True)),
        # Cancelled early, or told something that no daemon can do: one look.
        (DOWN, Doubt(NEVER_READY)),
        (DOWN._replace(ended=KILLED), Doubt(NEVER_READY)),
        (DOWN._replace(ended=REFUSED), Doubt(NEVER_READY)),
        (DOWN._replace(seeding=1), None),
        # What an earlier start could not prove stays, but for a daemon that answers.
        (DOWN._replace(doubt=UNPROVEN), Doubt(UNPROVEN)),
        (UP._replace(doubt=UNPROVEN), None),
        (UP._replace(doubt=UNPROVEN, boot_id=OTHER), Doubt(CRASHED, True)),
        # That says nothing about files that a crash has emptied: a start that was killed amid looking leaves the doubt.
        (DOWN._replace(doubt=CRASHED), Doubt(CRASHED, True)),
        (UP._replace(doubt=CRASHED), Doubt(CRASHED, True)),
        (UP._replace(doubt=CRASHED, ended=CLEAN), Doubt(CRASHED, True)),
        (UP._replace(doubt=LOST_NOTE), Doubt(LOST_NOTE, True)),
        (DOWN._replace(doubt="what a later version knows"), Doubt("what a later version knows", True)),
    ],
)
def test_what_is_doubted(noted: DataRootState, expected: Doubt | None) -> None:
    assert doubt.find(noted, BOOT) == expected


def test_a_note_that_is_lost_beside_data_is_a_crash_and_foreign_data_is_none() -> None:
    assert doubt.find(None, BOOT, lost_note=True) == Doubt(LOST_NOTE, True)
    assert doubt.find(None, BOOT) is None


def test_a_cancelled_start_is_no_reason_to_take_something_else() -> None:
    assert not doubt.is_grave(None)
    assert not doubt.is_grave(doubt.find(DOWN, BOOT))
    assert doubt.is_grave(doubt.find(UP, OTHER))
    assert doubt.is_grave(doubt.find(DOWN._replace(doubt=UNPROVEN), BOOT))


@pytest.mark.parametrize("why", [CRASHED, LOST_NOTE])
def test_a_crash_is_doubted_until_there_was_time_to_look_at_all_layers(why: str) -> None:
    found = Doubt(why, crashed=True)
    for unproven in (False, True):
        assert doubt.after_a_look(found, late=True, unproven=unproven) == why
    assert doubt.after_a_look(found, late=False, unproven=False) == ""
    assert doubt.after_a_look(found, late=False, unproven=True) == UNPROVEN, "all layers are whole"
    assert doubt.after_a_daemon(why) == why


@pytest.mark.parametrize("why", [NEVER_READY, UNPROVEN])
def test_other_doubts_end_with_a_daemon(why: str) -> None:
    assert doubt.after_a_look(Doubt(why), late=False, unproven=False) == ""
    assert doubt.after_a_look(Doubt(why), late=False, unproven=True) == UNPROVEN
    assert doubt.after_a_daemon(why) == doubt.after_a_daemon("") == ""
