"""The layers of the package: each module imports only from layers below its own, and every module has a layer.

All imports count, also those inside functions and under TYPE_CHECKING: a name in an annotation is a dependency too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "entrypoint" / "cachedind"

# Lowest first. Modules on one line do not know each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "model", "trace", "images", "sizes", "image_names", "engine_paths", "hosts", "flock"}),
    frozenset({"doubt", "seeds"}),
    frozenset(
        {
            "log",
            "linux",
            "procfs",
            "processes",
            "state",
            "keys",
            "bolt",
            "limits",
            "beneath",
            "databases",
            "socket_files",
        }
    ),
    frozenset(
        {
            "config",
            "arguments",
            "listeners",
            "probes",
            "certificates",
            "trees",
            "loops",
            "build_cache",
            "directories",
            "engine_root",
            "networks",
            "seed_spool",
            "graph_layers",
            "containerd_snapshots",
            "store_files",
            "host_daemon",
            "same_image",
            "hollow",
            "in_use",
            "survivors",
        }
    ),
    frozenset(
        {
            "graph_store",
            "containerd_store",
            "seed_ledger",
            "seed_plan",
            "seed_files",
            "seed_host",
            "seed_fetch",
            "damage",
            "aside",
            "clone",
        }
    ),
    frozenset({"image_stores", "seed_members", "seed_load", "kept", "unpacked"}),
    frozenset({"seed_archive"}),
    frozenset(
        {"daemon_json", "storage", "mounts", "cgroups", "iptables", "tls", "leftovers", "image", "private_daemon"}
    ),
    frozenset({"lease", "dataroot", "facts", "tls_child", "daemon_plan", "pruning", "pool_clock"}),
    frozenset({"decision", "summary", "pool", "seed_progress", "reload"}),
    frozenset({"slots", "maintenance", "seed_run", "mending"}),
    frozenset({"golden", "witness", "supervisor", "seeding"}),
    frozenset({"upkeep", "restart"}),
    frozenset({"pool_lease"}),
    frozenset({"pool_seeds"}),
    frozenset({"pool_start", "inventory"}),
    frozenset({"furnish", "doctor", "tables", "removal"}),
    frozenset({"boot", "seed_command"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)

LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def package_modules() -> list[str]:
    """Every module of the package as a dotted name relative to it; a package's own file goes by the package's name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def imported_modules(source: str) -> set[str]:
    """The modules of the package that a source imports, however it spells that."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"cachedind.{base}" if base else "cachedind"
            found.add(base)
            # `from cachedind import linux` names a module, `from cachedind.linux import mount` a function.
            found.update(f"{base}.{alias.name}" for alias in node.names if base == "cachedind")
    return {name.split(".")[1] for name in found if name.startswith("cachedind.")}


def violations(module: str, source: str) -> list[str]:
    """Sentences about imports that do not point downwards."""
    found = []
    for other in sorted(imported_modules(source)):
        # A name that is no module is something that the package's own file defines.
        if other not in LEVEL or other == module:
            continue
        if LEVEL[other] >= LEVEL[module]:
            found.append(f"{module} (layer {LEVEL[module]}) imports {other} (layer {LEVEL[other]})")
    return found


@pytest.mark.parametrize("module", [name for name in package_modules() if name])
def test_module_has_a_layer_and_imports_only_downwards(module: str) -> None:
    assert module in LEVEL, f"{module} has no layer: give it one in LAYERS"
    assert violations(module, (PACKAGE / f"{module}.py").read_text()) == []


def test_every_layered_module_exists() -> None:
    assert LEVEL.keys() - set(package_modules()) == set(), "these are gone: take them out of LAYERS"


def test_package_itself_imports_nothing_of_its_own() -> None:
    assert imported_modules((PACKAGE / "__init__.py").read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import cachedind.boot",
        "from cachedind import boot",
        "from cachedind.boot import boot",
        "from . import boot",
        "from .boot import boot",
        "def late():\n    from cachedind.boot import boot",
        "if TYPE_CHECKING:\n    from cachedind.boot import Boot",
    ],
)
def test_an_upward_import_is_seen_in_each_spelling(source: str) -> None:
    assert violations("storage", source) == [f"storage (layer {LEVEL['storage']}) imports boot (layer {LEVEL['boot']})"]


def test_a_sideways_import_is_seen() -> None:
    level = LEVEL["storage"]
    assert violations("storage", "from cachedind.tls import renew") == [
        f"storage (layer {level}) imports tls (layer {level})"
    ]


def test_a_downward_import_is_fine() -> None:
    assert violations("storage", "from cachedind.probes import probe_overlay\nimport os") == []
