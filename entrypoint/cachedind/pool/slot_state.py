"""What slot.json and golden.json say. Pure.

"Newest" is decided by a number that each start of a key draws under the key's lock, never by a clock. A state is
trusted when the last daemon on it came up (`ready_at`) and the host has not gone down since; a golden, when it was on
disk before it got its name.
"""

from __future__ import annotations

from enum import StrEnum

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.dataroot import contents
from cachedind.engine import doubt

if TYPE_CHECKING:
    from cachedind.base.model import DataRootState

STATE_NAME = "slot.json"
GOLDEN_NAME = "golden.json"

_NOT_CLONED = frozenset(
    {
        *("id", "from", "durable", "promoted_at", "took_s", "ended", "version", "min_reader"),
        *("begun", "before", "nothing_new", "holder"),
    }
)


class Kind(StrEnum):
    SLOT = "slot"
    GOLDEN = "golden"


class SlotState(NamedTuple):
    """What slot.json or golden.json says. `data` is None where no daemon has run on it yet.

    `sequence` is the number of the start that made this state, the last one whose daemon came up: a start that was
    cancelled adds nothing. `durable` tells that a golden was on disk when it got its name; `pure` that no job's daemon
    has ever come up on it.
    """

    data: DataRootState | None
    arch: str
    sequence: int
    parent: str = ""
    read_only: bool = False
    durable: bool = False
    pure: bool = False
    id: str = ""
    """A golden's, which its clones have as `parent`."""
    asked: str = ""
    """Which request alone has led to its store and driver: "driver", "store", or "" for none (storage.name_asked)."""
    scope: str = ""
    """Which job of the project has made it."""
    begun: int = 0
    """The number of the last start on it; `sequence` gets it when its daemon has come up."""
    before: int = 0
    """The sequence of the state that this start began with; 0 where that was not of its own scope."""
    container: str = ""
    """In which container the last start on it was; empty where that is not known."""
    nothing_new: bool = False
    """Whether its last job was found to have left less than what it began with, or nothing beside what it had from
    another scope or key: it replaces nothing."""

    @property
    def never_ready(self) -> bool:
        return self.data is not None and self.data.ready_at is None

    def is_trusted(self, boot_id: str) -> bool:
        if self.data is None or self.never_ready:
            return False
        return self.durable or doubt.find(self.data, boot_id) is None

    def is_likely(self, boot_id: str) -> bool:
        """Whether it is as good as one that is trusted for all that anybody knows: its last start may have been
        cancelled before the daemon answered, which says nothing about what is in it."""
        if self.data is None or self.is_trusted(boot_id):
            return self.data is not None
        return not self.pure and not doubt.is_grave(doubt.find(self.data, boot_id))


class Candidate(NamedTuple):
    """Something to start from: a slot to lease, or a golden to clone. `name` is its path below the key."""

    kind: Kind
    name: str
    state: SlotState


def class_name(found: SlotState) -> str:
    """What goldens are kept apart by: states of different classes do not replace each other."""
    data = found.data
    if data is None:
        return "empty"
    major, minor = data.engine.release
    remap = f"-{data.remap}" if data.remap else ""
    asked = f"-by-{found.asked}" if found.asked else ""
    return f"{major}.{minor}-{data.store}-{data.driver}-{found.arch}{remap}{asked}"


def parse_slot_state(raw: dict[str, object]) -> SlotState:
    """Raises ValueError for anything that this version could not have written."""
    sequence, arch, parent = raw.get("sequence"), raw.get("arch"), raw.get("parent", "")
    if not isinstance(sequence, int) or isinstance(sequence, bool) or not 0 <= sequence < 1 << 62:
        raise ValueError("sequence is not a number")
    if not isinstance(arch, str) or not arch.replace("_", "").isalnum() or not isinstance(parent, str):
        raise ValueError("arch or parent is not a name")
    return SlotState(
        data=None if raw.keys().isdisjoint(("engine", "started_at")) else contents.parse_data_root_state(raw),
        arch=arch,
        sequence=sequence,
        parent=parent[:200],
        read_only=raw.get("read_only") is True,
        durable=raw.get("durable") is True,
        pure=raw.get("pure") is True,
        id=str(raw.get("id", ""))[:200],
        asked=asked if (asked := str(raw.get("asked", ""))) in ("driver", "store") else "",
        scope=parse_scope(raw),
        begun=_number(raw, "begun"),
        before=_number(raw, "before"),
        container=_container(raw.get("holder")),
        nothing_new=raw.get("nothing_new") is True,
    )


def _container(holder: object) -> str:
    found = holder.get("container") if isinstance(holder, dict) else None
    return found if isinstance(found, str) else ""


def parse_scope(raw: dict[str, object]) -> str:
    """Raises ValueError."""
    scope = raw.get("scope", "")
    if not isinstance(scope, str):
        raise ValueError("scope is not a name")
    return scope


def _number(raw: dict[str, object], name: str) -> int:
    value = raw.get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else 0


def clone_state(raw: dict[str, object], *, scope: str, sequence: int, read_only: bool) -> dict[str, object]:
    """The slot.json of a clone, from its golden's golden.json."""
    kept = {name: value for name, value in raw.items() if name not in _NOT_CLONED}
    return {
        **kept,
        "scope": scope,
        "sequence": sequence,
        "parent": str(raw.get("id", "")),
        "read_only": read_only,
    }
