"""Every way to fail has a code of sysexits, a description, and survives the way from a child process."""

from __future__ import annotations

import pickle

import pytest

from cachedind.base import errors
from cachedind.base.errors import CachedindError


def kinds(of: type[CachedindError] = CachedindError) -> list[type[CachedindError]]:
    return [of, *(kind for direct in of.__subclasses__() for kind in kinds(direct))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_a_docstring_a_cause_and_a_hint(kind: type[CachedindError]) -> None:
    assert kind.__module__ == errors.__name__, "all errors live in one file"
    assert 64 <= kind.exit_code <= 78
    assert kind.__doc__
    assert kind is CachedindError or kind.__name__.endswith("Error")
    error = kind("what is wrong", "how to mend it")
    assert (str(error), error.cause, error.hint) == ("what is wrong", "what is wrong", "how to mend it")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_can_be_sent_from_a_child_process(kind: type[CachedindError]) -> None:
    arrived = pickle.loads(pickle.dumps(kind("cause", "hint")))
    assert type(arrived) is kind
    assert (arrived.cause, arrived.hint) == ("cause", "hint")


@pytest.mark.parametrize("kind", kinds()[1:], ids=lambda k: k.__name__)
def test_the_docstring_names_the_code_as_sysexits_does(kind: type[CachedindError]) -> None:
    names = {
        64: "EX_USAGE",
        65: "EX_DATAERR",
        66: "EX_NOINPUT",
        69: "EX_UNAVAILABLE",
        71: "EX_OSERR",
        73: "EX_CANTCREAT",
        74: "EX_IOERR",
        75: "EX_TEMPFAIL",
        77: "EX_NOPERM",
        78: "EX_CONFIG",
    }
    assert names[kind.exit_code] in str(kind.__doc__)
