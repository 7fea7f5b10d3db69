"""The house: each package imports only from those before it, and inside of one nothing goes round in a circle.

All imports count, also those inside functions and under TYPE_CHECKING: a name in an annotation is a dependency too.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "entrypoint" / "cachedind"

PACKAGES = (
    "base",
    "host",
    "settings",
    "api",
    "engine",
    "dataroot",
    "pool",
    "seeds",
    "start",
    "commands",
)
"""Lowest first. docs/architecture.md says what each is for."""

LEVEL = {package: level for level, package in enumerate(PACKAGES)}


def modules() -> dict[str, str]:
    """The source of every module, by its name below the house ("engine.bolt"); a package's own file goes by its
    package's."""
    found = {}
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(HOUSE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imported(module: str, source: str) -> set[str]:
    """The modules of the house that a source imports, however it spells that; perhaps with a name in them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["cachedind", *module.split(".")][: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            # `from cachedind.host import linux` names a module, `from cachedind.host.linux import mount` a function.
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name.removeprefix("cachedind.") for name in found if name.startswith("cachedind.")}


def upward(module: str, source: str) -> list[str]:
    """Sentences about imports from a package that comes later, or from outside of all packages."""
    package = module.split(".")[0]
    found = []
    for other in sorted(imported(module, source)):
        level = LEVEL.get(other.split(".")[0])
        if level is None or level > LEVEL[package]:
            found.append(f"{module} imports {other}, which is above {package}")
    return found


MODULES = modules()


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in LEVEL])
def test_a_module_imports_nothing_from_above(module: str) -> None:
    assert upward(module, MODULES[module]) == []


def test_every_module_is_in_a_package() -> None:
    assert {name.split(".")[0] for name in MODULES} - {"", "__main__"} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_inside(package: str) -> None:
    inside = {name: source for name, source in MODULES.items() if name.startswith(f"{package}.")}
    order = graphlib.TopologicalSorter(
        {
            name: {other for other in inside for used in imported(name, source) if f"{used}.".startswith(f"{other}.")}
            for name, source in inside.items()
        }
    )
    order.prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_a_package_says_what_it_is_for_and_nothing_else(package: str) -> None:
    [only] = ast.parse(MODULES[package]).body
    assert isinstance(only, ast.Expr)
    assert isinstance(only.value, ast.Constant)
    assert isinstance(only.value.value, str)
    assert len(only.value.value) > 20


@pytest.mark.parametrize(
    "source",
    [
        "import cachedind.start.boot",
        "from cachedind.start import boot",
        "from ..start import boot",
        "def late():\n    from cachedind.start import boot",
        "if TYPE_CHECKING:\n    from cachedind.start import boot",
    ],
)
def test_an_upward_import_is_seen_in_each_spelling(source: str) -> None:
    assert upward("engine.bolt", source) == ["engine.bolt imports start.boot, which is above engine"]


def test_an_import_from_below_or_from_elsewhere_is_fine() -> None:
    assert upward("engine.bolt", "from cachedind.host.linux import mount\nfrom cachedind.engine import paths") == []
    assert upward("engine.bolt", "import os\nfrom pathlib import Path") == []
