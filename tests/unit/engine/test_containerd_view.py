"""The fresh view with the containerd store: which records go, and what is held for that."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from cachedind.engine import containerd_holder, containerd_view
from cachedind.engine.containerd_view import Plan, plan_view
from cachedind.engine.fresh_images import View

A, B, C, CONFIG = (f"sha256:{letter * 64}" for letter in "abcd")
REDIS = "docker.io/library/redis:7"
NOBODY: frozenset[str] = frozenset()


def plan(targets: dict[str, str], view: View, held: frozenset[str] = NOBODY, expired: frozenset[str] = NOBODY) -> Plan:
    return plan_view(targets, view, {A: CONFIG}.get, held, expired)


def test_all_goes_that_nobody_names_and_is_held() -> None:
    found = plan({"app:1": A, "app:2": A, f"moby-dangling@{B}": B}, View({}))
    assert found == Plan(
        ("app:1", "app:2", f"moby-dangling@{B}"), {A: ("app:1", "app:2"), B: (f"moby-dangling@{B}",)}, NOBODY
    )


@pytest.mark.parametrize(
    ("targets", "gone"),
    [({REDIS: A}, ()), ({REDIS: A, "mine:1": A}, ("mine:1",)), ({REDIS: B}, (REDIS,)), ({}, ())],
    ids=["untouched", "tagged", "retagged", "untagged"],
)
def test_seeds_are_there_by_their_names_alone(targets: dict[str, str], gone: tuple[str, ...]) -> None:
    assert plan(targets, View({REDIS: CONFIG})).names == gone


def test_images_of_kept_containers_keep_their_names() -> None:
    assert plan({"app:1": A, "app:2": B}, View({}, frozenset({A}))).names == ("app:2",)


def test_nothing_is_to_do_where_all_is_hidden() -> None:
    assert not plan({}, View({}), held=frozenset({A, B}))


def test_what_is_too_old_is_held_no_longer_unless_a_job_had_it_again() -> None:
    found = plan({"app:1": A}, View({}), held=frozenset({A, B}), expired=frozenset({A, B, C}))
    assert found.names == ("app:1",)
    assert found.dropped == {B}


@pytest.mark.parametrize("odd", [f"sha512:{'a' * 128}", "", "sha256:../../etc", A[:-1], f"{A}0"])
def test_what_has_no_usual_digest_goes_with_its_name_and_is_not_held(odd: str) -> None:
    found = plan({"odd:1": odd, "app:1": A}, View({"odd:1": CONFIG}))
    assert found == Plan(("app:1", "odd:1"), {A: ("app:1",)}, NOBODY)
    assert containerd_holder.label_words(found.hidden.keys(), found.dropped)


def test_labels_hold_and_let_go() -> None:
    words = containerd_holder.label_words([A], [B])
    assert words == [
        "containerd.io/gc.root=cachedind",
        f"containerd.io/gc.ref.content.{A[7:]}={A}",
        f"containerd.io/gc.ref.content.{B[7:]}=",
    ]
    labels = dict(word.partition("=")[::2] for word in words)
    assert containerd_holder.held_by(labels) == {A}
    assert containerd_holder.label_words([], []) == []


def test_records_come_back_by_an_index_alone() -> None:
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": []}
    entries = [
        containerd_view.entry(A, json.dumps(manifest).encode()),
        containerd_view.entry(B, b'{"manifests": []}'),
    ]
    with tarfile.open(fileobj=io.BytesIO(containerd_view.layout(entries))) as tar:
        assert tar.getnames() == ["oci-layout", "index.json"]
        file = tar.extractfile("index.json")
        assert file is not None
        index = json.load(file)
    assert [entry["digest"] for entry in index["manifests"]] == [A, B]
    assert [entry["mediaType"] for entry in index["manifests"]] == [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.index.v1+json",
    ]
