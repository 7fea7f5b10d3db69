"""The fresh view with the containerd store (fresh_images.py), through containerd's own API: the records of images are
removed, and a blob of ours holds what they stood for (containerd_holder.py).

`ctr`, which comes with containerd, is the client: a few calls of some 20 ms, and only when there is something to hide.
"""

from __future__ import annotations

from cachedind.base.errors import CleaningError, ProgramMissingError
from cachedind.base.state import parse_object
from cachedind.base.trace import NOWHERE
from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.engine import containerd_holder, fresh_images
from cachedind.engine.containerd_store import ContainerdStore
from cachedind.engine.fresh_images import Unused
from cachedind.engine.leftovers import SET_ASIDE
from cachedind.engine.store_files import DIGEST, digits
from cachedind.host import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachedind.base.trace import Trace
    from cachedind.engine.fresh_images import View

_CALL_S = 60.0
_TRIES = 5


class Plan(NamedTuple):
    """The records of images that go (names as containerd has them), what they stand for with the names that it had, and
    what is not to be held any longer. `lost` are those of the hidden that are not whole: nobody holds these, so that
    containerd forgets what it thinks to have, and the next pull gets it."""

    names: tuple[str, ...]
    hidden: Mapping[str, tuple[str, ...]]
    dropped: frozenset[str]
    lost: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.names or self.dropped)


def plan_view(
    targets: Mapping[str, str],
    view: View,
    config_of: Callable[[str], str | None],
    held: frozenset[str],
    expired: frozenset[str],
) -> Plan:
    """Pure but for `config_of`. `targets` are all records: what each name stands for. What has no digest as engines
    make them (sha256) goes with its name, and nothing holds it."""
    stay = {
        name
        for name, target in targets.items()
        if target in view.ids or (name in view.names and config_of(target) == view.names[name])
    }
    hidden: dict[str, list[str]] = {}
    for name in targets.keys() - stay:
        hidden.setdefault(targets[name], []).append(name)
    going = {target: tuple(sorted(names)) for target, names in hidden.items() if DIGEST.fullmatch(target)}
    return Plan(tuple(sorted(targets.keys() - stay)), going, (expired & held) - going.keys())


class ContainerdView:
    def __init__(self, root_fd: int, driver: str, trace: Trace = NOWHERE) -> None:
        self._trace = trace
        self._root_fd = root_fd
        self._store = ContainerdStore(root_fd, driver)

    def plan(self, view: View, expired: frozenset[str]) -> Plan:
        """What there is to do. Looks without a daemon. Raises CleaningError where the records cannot be read: then
        nobody knows what the next job would see."""
        plan = plan_view(self._targets(), view, self._store.config_of, self.unused(), expired)
        lost = frozenset(filter(self._store.has_lost_layers, plan.hidden))
        whole = {target: names for target, names in plan.hidden.items() if target not in lost}
        return plan._replace(hidden=whole, lost=lost, dropped=plan.dropped | (lost & self.unused()))

    def unused(self) -> frozenset[str]:
        """What our blob holds."""
        return self._store.held()

    def shown(self) -> frozenset[str]:
        """What a job sees. Raises CleaningError."""
        return frozenset(self._targets().values())

    def _targets(self) -> Mapping[str, str]:
        try:
            return self._store.targets()
        except (OSError, ValueError) as error:
            raise CleaningError(f"the records of the last job's images cannot be read: {error}", SET_ASIDE) from error

    def apply(self, plan: Plan, used_at: Mapping[str, float], containerd: Client) -> None:
        """Do it, with the data-root's containerd; `used_at` tells when a job had each of the hidden last. A kill amid
        that leaves the rest to the next start. Raises CleaningError, OSError."""
        unused = self.unused()
        if plan.hidden:
            going = {image_id: Unused(used_at[image_id], names) for image_id, names in plan.hidden.items()}
            fresh_images.add_unused(self._root_fd, going, keep=unused - plan.dropped)
            self._trace.reach("view.noted")
        words = containerd_holder.label_words(plan.hidden.keys() - unused, plan.dropped)
        if words:
            _hold(containerd, words, is_there=bool(unused))
            self._trace.reach("view.held")
        if plan.names:
            containerd.call("images", "rm", *(["--sync"] if plan.lost else []), *plan.names)
            self._trace.reach("view.gone")

    def bring_back(self, containerd: Client) -> None:
        """Make records of all unused images, and hold them no longer, to have an engine remove some. Raises
        CleaningError."""
        unused = self.unused()
        documents = ((target, self._store.document(target)) for target in sorted(unused))
        entries = [entry(target, raw) for target, raw in documents if raw]
        if entries:
            containerd.call("images", "import", "--no-unpack", "-", stdin=layout(entries))
        if unused:
            words = containerd_holder.label_words((), unused)
            containerd.call("content", "label", containerd_holder.DIGEST_OF_IT, *words)


class Client(NamedTuple):
    """A containerd: the path of its socket, and the environment for `ctr`."""

    address: str
    environ: Mapping[str, str]

    def call(self, *words: str, stdin: bytes = b"") -> None:
        """Raises CleaningError."""
        argv = ["ctr", "--address", self.address, "--namespace", "moby", *words]
        what = f"images of the last job cannot be hidden: ctr {words[0]} {words[1]}"
        try:
            done = processes.run(argv, env=self.environ, timeout_s=_CALL_S, stdin=stdin)
        except ProgramMissingError as error:
            raise CleaningError(f"{what}: {error.cause}", error.hint) from error
        if not done.ok:
            said = done.stderr.strip().splitlines()[-1:] or [f"status {done.status}"]
            raise CleaningError(f"{what}: {said[0]}", SET_ASIDE)


def _hold(containerd: Client, words: list[str], *, is_there: bool) -> None:
    """The collector runs 0.1 s after containerd has started, and takes a blob that has no label yet."""
    digest = containerd_holder.DIGEST_OF_IT
    for left in reversed(range(_TRIES)):
        if not is_there:
            content = containerd_holder.CONTENT
            containerd.call("content", "ingest", "--expected-digest", digest, "cachedind-unused", stdin=content)
        try:
            containerd.call("content", "label", digest, *words)
        except CleaningError:
            if not left:
                raise
            is_there = False
        else:
            return


def entry(target: str, raw: bytes) -> dict[str, object]:
    document = parse_object(raw)
    kind = "index" if "manifests" in document else "manifest"
    return {
        "mediaType": document.get("mediaType") or f"application/vnd.oci.image.{kind}.v1+json",
        "digest": target,
        "size": len(raw),
        "annotations": {"io.containerd.image.name": f"docker.io/library/cachedind-unused:{digits(target)}"},
    }


def layout(entries: list[dict[str, object]]) -> bytes:
    """An OCI layout in a tar with nothing but an index, whose blobs are there."""
    import io
    import json
    import tarfile  # 5 ms

    index = {"schemaVersion": 2, "manifests": entries}
    files = {"oci-layout": {"imageLayoutVersion": "1.0.0"}, "index.json": index}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            raw = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return stream.getvalue()
