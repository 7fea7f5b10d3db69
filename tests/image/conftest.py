"""The image lane: cachedind containers on a real engine, judged from outside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from helpers import capabilities
from helpers.dind import Dind
from helpers.engine import Engine
from helpers.estates import Estates
from helpers.flavours import FLAVOURS, STAND_IN, SUITES, Flavour
from helpers.seeds import Ten, make_ten

SELDOM = FLAVOURS[1]


def others(name: str) -> set[str]:
    """The same variant of a test with the other flavours."""
    return {name.replace(str(SELDOM), str(flavour)) for flavour in FLAVOURS if flavour is not SELDOM}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the variants that are run seldom as `rare` (scripts/test rare).

    Of the three flavours that is 28.5 with graph drivers, where a test has the other two: each engine and each store
    once. A test that is slow names with `everyday` which of its variants are not.
    """
    variants: defaultdict[str, dict[str, pytest.Item]] = defaultdict(dict)
    for item in items:
        if isinstance(item, pytest.Function):
            variants[item.nodeid.partition("[")[0]][item.callspec.id if hasattr(item, "callspec") else ""] = item
    for test, by_id in variants.items():
        everyday = next(iter(by_id.values())).get_closest_marker("everyday")
        if everyday is not None:
            assert set(everyday.args) <= by_id.keys(), f"{test} has no such variant: {everyday.args}"
            rare = by_id.keys() - set(everyday.args)
        else:
            rare = {name for name in by_id if str(SELDOM) in name and all(other in by_id for other in others(name))}
        for name in rare:
            by_id[name].add_marker("rare")


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


@pytest.fixture(scope="module", params=(*SUITES, STAND_IN))
def bench(request: pytest.FixtureRequest, session_engine: Engine) -> Iterator[Dind]:
    """The image without privileges and without a daemon: for its files and its client side."""
    engine = session_engine.scope()
    try:
        yield engine.dind(str(request.param), entrypoint=["sleep", "infinity"], privileged=False, init=True)
    finally:
        engine.close()


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
