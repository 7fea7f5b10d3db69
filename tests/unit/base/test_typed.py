"""Named tuples are what `typing` makes of the same body."""

from __future__ import annotations

import contextlib
import pickle
import sys
import typing

import pytest

from cachedind.base import typed

POSTPONED = "from __future__ import annotations"
NAMES = {"NamedTuple": typed.NamedTuple, "__name__": __name__}


class Ours(typed.NamedTuple):
    """What it is."""

    one: int
    two: str = "b"
    three: NoSuchType | None = None  # type: ignore[name-defined]  # noqa: F821
    """Of the third."""

    @property
    def both(self) -> str:
        return f"{self.one}{self.two}"

    @classmethod
    def of(cls, one: int) -> Ours:
        return cls(one)

    def __str__(self) -> str:
        return f"<{self.both}>"


class Theirs(typing.NamedTuple):
    one: int
    two: str = "b"
    three: int | None = None


def test_it_is_a_tuple_with_names_defaults_and_methods() -> None:
    ours, theirs = Ours(1), Theirs(1)
    assert (*ours,) == (*theirs,)
    assert ours.__eq__(theirs)
    assert hash(ours) == hash(theirs)
    assert ours._replace(two="c") == (1, "c", None)
    assert ours._asdict() == theirs._asdict()
    assert (Ours._fields, Ours._field_defaults) == (Theirs._fields, Theirs._field_defaults)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert (ours.both, str(ours), str(Ours.of(2)), Ours.__doc__) == ("1b", "<1b>", "<2b>", "What it is.")
    assert Ours.__mro__[1:] == Theirs.__mro__[1:]
    assert (Ours.__module__, Ours.__qualname__) == (__name__, "Ours")


def test_it_is_copied_between_processes() -> None:
    assert pickle.loads(pickle.dumps(Ours(1, "x"))) == Ours(1, "x")


def test_it_may_have_no_field_and_cannot_be_changed() -> None:
    class Empty(typed.NamedTuple):
        pass

    assert Empty() == ()
    with pytest.raises(AttributeError):
        Ours(1).one = 2  # type: ignore[misc]


def test_what_typing_refuses_is_refused() -> None:
    with pytest.raises(TypeError, match="default"):
        exec(f"{POSTPONED}\nclass Bad(NamedTuple):\n    one: int = 1\n    two: int", NAMES)
    with pytest.raises(TypeError, match="from __future__") if sys.version_info >= (3, 14) else contextlib.nullcontext():
        exec("class Bad(NamedTuple):\n    one: int", NAMES)
    with pytest.raises(TypeError, match="no other base"):
        exec(f"{POSTPONED}\nclass Bad(str, NamedTuple):\n    one: int", NAMES)
    with pytest.raises(AttributeError, match="_replace"):
        exec(f"{POSTPONED}\nclass Bad(NamedTuple):\n    one: int\n    def _replace(self): ...", NAMES)
    with pytest.raises(TypeError):
        Ours()  # type: ignore[call-arg]
