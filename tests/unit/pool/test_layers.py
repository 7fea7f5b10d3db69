"""Links, lists and the choice of what is swept: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedind.pool import layer_links, layer_list, layers
from cachedind.pool.layer_links import BadLinkError
from cachedind.pool.layer_list import BadListError

A, B = "0123456789abcdef" * 2, "fedcba9876543210" * 2
GRAPH = "overlay2/x/diff"
REMAPPED = "100000.100000/overlay2/x/diff"

paths = st.lists(st.text("abc.", min_size=1), min_size=1, max_size=6).map("/".join)
ids = st.binary(min_size=16, max_size=16).map(bytes.hex)


def test_a_link_is_relative_to_its_own_place() -> None:
    assert layer_links.target_of(GRAPH, A) == f"../../.cachedind/layers/{A}/content"
    assert layer_links.target_of(REMAPPED, A) == f"../../../.cachedind/layers/{A}/content"


@given(paths, ids)
def test_what_a_link_says_is_understood_again_and_at_no_other_depth(path: str, layer_id: str) -> None:
    target = layer_links.target_of(path, layer_id)
    assert layer_links.id_in(path, target) == layer_id
    assert layer_links.id_in(f"more/{path}", target) is None


@pytest.mark.parametrize(
    "target",
    [
        "/etc",
        "../..",
        f"/var/lib/docker/.cachedind/layers/{A}/content",
        f"../../.cachedind/layers/{A}",
        f"../../.cachedind/layers/{A}/content/",
        f"../../.cachedind/layers/{A}/content/../../{B}/content",
        f"../../../.cachedind/layers/{A}/content",
        f"../.cachedind/layers/{A}/content",
        f"../../.cachedind/layers/{A.upper()}/content",
        f"../../.cachedind/layers/{A[1:]}/content",
        f"../../.cachedind/layers/../layers/{A}/content",
        "diff",
        "",
        f"../../.cachedind/layers/{A}/content\n",
    ],
)
def test_what_a_job_has_planted_is_no_layer(target: str) -> None:
    with pytest.raises(BadLinkError, match="not a layer of the pool"):
        layer_links.check_link(GRAPH, target, frozenset({A, B}))


def test_a_layer_that_was_not_given_to_a_slot_is_refused() -> None:
    assert layer_links.check_link(GRAPH, layer_links.target_of(GRAPH, A), frozenset({A})) == A
    with pytest.raises(BadLinkError, match="has not been given"):
        layer_links.check_link(GRAPH, layer_links.target_of(GRAPH, B), frozenset({A}))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        f"{A}\n".encode(),
        f"{A}\nend 2\n".encode(),
        f"{A}\n{B}\nend 1\n".encode(),
        f"{A}\nend 1".encode(),
        f"{A}\nend 1\nmore\n".encode(),
        b"nothing\nend 1\n",
        f"{A}/..\nend 1\n".encode(),
        bytes(64),
    ],
)
def test_a_list_that_is_not_whole_is_none(raw: bytes) -> None:
    with pytest.raises(BadListError):
        layer_list.parse_list(raw)


@given(st.frozensets(ids, max_size=9), st.integers(min_value=0))
def test_a_list_cut_short_anywhere_is_never_a_shorter_list(wanted: frozenset[str], cut: int) -> None:
    raw = "".join(f"{layer_id}\n" for layer_id in sorted(wanted)) + f"end {len(wanted)}\n"
    assert layer_list.parse_list(raw.encode()) == wanted
    with pytest.raises(BadListError):
        layer_list.parse_list(raw.encode()[: cut % len(raw)])


def test_only_what_nobody_lists_and_what_is_old_enough_goes() -> None:
    born = {A: 100.0, B: 100.0, "young": 195.0, "ahead": 9999.0}
    assert layers.plan_sweep(born, frozenset({A}), started=200.0, grace_s=10.0) == [B]
    assert layers.plan_sweep(born, frozenset(), started=200.0, grace_s=0.0) == sorted([A, B, "young"])
