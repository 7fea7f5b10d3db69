"""The image lane: cachedind containers on a real engine, judged from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import capabilities
from helpers.engine import Engine
from helpers.estates import Estates
from helpers.flavours import FLAVOURS, SUITES, Flavour
from helpers.seeds import Ten, make_ten


@pytest.fixture(scope="session")
def session_engine() -> Iterator[Engine]:
    """The outer engine with what lives as long as the session. Tests want `engine`."""
    engine = Engine.connect()
    try:
        absent = capabilities.missing([capabilities.images(engine, *SUITES), capabilities.workbench(engine)])
        assert not absent, "this lane cannot run here: " + "; ".join(absent)
        yield engine
    finally:
        engine.close()
    assert engine.leftovers() == []


@pytest.fixture
def engine(session_engine: Engine) -> Iterator[Engine]:
    """The outer engine; whatever a test makes on it is gone after the test."""
    scope = session_engine.scope()
    yield scope
    scope.close()


@pytest.fixture(scope="module")
def module_engine(session_engine: Engine) -> Iterator[Engine]:
    """The same, for what the tests of a module share."""
    scope = session_engine.scope()
    yield scope
    scope.close()


@pytest.fixture(scope="module")
def estates(module_engine: Engine) -> Iterator[Estates]:
    """Pools that the tests of a module share."""
    found = Estates(module_engine)
    yield found
    found.close()


@pytest.fixture(params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Each image under test."""
    return str(request.param)


@pytest.fixture(params=FLAVOURS, ids=str)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Each image with each image store that makes sense there."""
    flavour: Flavour = request.param
    return flavour


@pytest.fixture(scope="session")
def ten(session_engine: Engine) -> Ten:
    """Ten images as seeds, about 1 GB. Nobody changes them."""
    return make_ten(session_engine)
