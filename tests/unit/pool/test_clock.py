"""The time of a pool: a clock that jumps makes nothing old, one that goes on is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.pool.clock import JUMP_S, NAME, Judgement, Note, judge, read_now

YEAR_S = 365 * 86_400.0
NOW = 1_795_000_000.0


@pytest.fixture
def tree_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_clock_that_goes_on_is_believed() -> None:
    assert judge(None, NOW) == Judgement(NOW, Note(NOW))
    assert judge(Note(NOW), NOW + JUMP_S) == Judgement(NOW + JUMP_S, Note(NOW + JUMP_S))


def test_a_clock_that_was_set_back_is_believed() -> None:
    assert judge(Note(NOW), NOW - YEAR_S) == Judgement(NOW - YEAR_S, Note(NOW - YEAR_S))


def test_a_clock_that_jumps_ahead_is_not_believed_before_a_day_of_it() -> None:
    ahead = NOW + YEAR_S
    noted = Note(NOW, ahead)
    assert judge(Note(NOW), ahead) == Judgement(NOW, noted)
    assert judge(noted, ahead + JUMP_S - 1) == Judgement(NOW, noted)
    assert judge(noted, ahead + JUMP_S) == Judgement(ahead + JUMP_S, Note(ahead + JUMP_S))


def test_somebody_with_an_earlier_time_makes_the_jump_void() -> None:
    ahead = NOW + YEAR_S
    note = judge(judge(Note(NOW), ahead).note, NOW + 60).note
    assert note == Note(NOW + 60)
    assert judge(note, ahead + JUMP_S + 60).now == NOW + 60


@given(st.floats(0, 4e9), st.lists(st.floats(0, 4e9), max_size=8))
def test_no_time_is_later_than_the_clock_or_moves_further_than_a_jump_at_once(first: float, times: list[float]) -> None:
    note = judge(None, first).note
    for now in times:
        before, (believed, note) = note, judge(note, now)
        assert believed <= max(now, before.at)
        assert believed <= before.at + JUMP_S or (before.ahead and now >= before.ahead + JUMP_S)


def test_it_is_noted_down(tree_fd: int) -> None:
    assert read_now(tree_fd, NOW) == NOW
    assert read_now(tree_fd, NOW + YEAR_S) == NOW
    assert read_now(tree_fd, NOW + YEAR_S + JUMP_S) == NOW + YEAR_S + JUMP_S
    assert read_now(tree_fd, NOW) == NOW


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"min_reader": 1}', '{"min_reader": 1, "at": "x", "ahead": 0}'])
def test_a_note_that_makes_no_sense_is_none(tree_fd: int, tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert read_now(tree_fd, NOW) == NOW
    assert read_now(tree_fd, NOW + YEAR_S) == NOW
