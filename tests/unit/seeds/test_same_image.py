"""Whether two stores have the same image, however engines show it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedind.seeds.same_image import is_same_image, shares_digest
from helpers.host_images import (
    FULL_RUN,
    ID,
    JSON,
    LAYERS,
    OTHER_ID,
    REPO_DIGEST,
    STYLES,
    Values,
    configuration_of,
    inspection_of,
)


@pytest.mark.parametrize("theirs", STYLES)
@pytest.mark.parametrize("ours", STYLES)
@pytest.mark.parametrize("run", [FULL_RUN, {}, {"Cmd": ["sh"]}], ids=["full", "empty", "a command"])
def test_an_image_is_the_same_however_engines_show_it(run: Values, ours: str, theirs: str) -> None:
    assert is_same_image(inspection_of(run, theirs), configuration_of(run, ours))


@pytest.mark.parametrize("theirs", [None, ..., {}], ids=["null", "left out", "empty"])
@pytest.mark.parametrize("ours", [None, ..., {}], ids=["null", "left out", "empty"])
def test_an_image_without_any_configuration(theirs: object, ours: object) -> None:
    assert is_same_image(inspection_of({}, Config=theirs), configuration_of({}, config=ours))
    assert not is_same_image(inspection_of({}, Config=theirs), configuration_of({"User": "x"}))
    assert not is_same_image(inspection_of({"User": "x"}), configuration_of({}, config=ours))


OTHER_RUNS: list[Values] = [
    *[{field: ...} for field in FULL_RUN],
    {"Env": ["PATH=/usr/bin:/bin", "A=2"]},
    {"Env": ["A=1", "PATH=/usr/bin:/bin"]},
    {"Env": ["PATH=/usr/bin:/bin", "A=1", "B="]},
    {"Cmd": ["redis-server", ""]},
    {"Cmd": "redis-server"},
    {"Cmd": ["redis-server "]},
    {"Entrypoint": [""]},
    {"WorkingDir": "/"},
    {"User": "0"},
    {"Labels": {"org.example.b": "2"}},
    {"Labels": {"org.example.a": " ", "org.example.b": "2"}},
    {"StopSignal": "SIGTERM"},
    {"OnBuild": ["RUN y"]},
    {"Shell": ["/bin/sh", "-c"]},
    {"ExposedPorts": {"6379/tcp": {}}},
    {"ExposedPorts": {"6379/udp": {}, "80/tcp": {}}},
    {"Volumes": {"/data": {}, "/logs": {}}},
    {"Healthcheck": {"Test": ["NONE"]}},
    {"Healthcheck": {"Test": ["CMD", "pong"], "Interval": 30_000_000_000, "Retries": 3}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 10_000_000_000, "Retries": 3}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000}},
    {"Healthcheck": {"Test": ["CMD", "ping"], "Interval": 30_000_000_000, "Retries": 3, "StartInterval": 1}},
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("change", OTHER_RUNS, ids=str)
def test_images_that_run_differently_are_not_the_same(change: Values, style: str) -> None:
    other = {field: value for field, value in {**FULL_RUN, **change}.items() if value is not ...}
    assert is_same_image(inspection_of(other, style), configuration_of(other))
    assert not is_same_image(inspection_of(other, style), configuration_of(FULL_RUN))
    assert not is_same_image(inspection_of(FULL_RUN, style), configuration_of(other))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"architecture": "amd64"}, {"Architecture": "amd64"}),
        ({"os": "windows"}, {"Os": "windows"}),
        ({"variant": "v9"}, {"Variant": "v9"}),
        ({"variant": ...}, {"Variant": ""}),
        ({"created": "2024-05-01T10:00:00.123456788Z"}, {"Created": "2024-05-01T10:00:00.123456788Z"}),
        ({"created": "2025-05-01T10:00:00.123456789Z"}, {"Created": "2025-05-01T10:00:00.123456789Z"}),
        ({"created": ...}, {"Created": ""}),
        ({"rootfs": {"diff_ids": LAYERS[:1]}}, {"RootFS": {"Layers": LAYERS[:1]}}),
        ({"rootfs": {"diff_ids": LAYERS[::-1]}}, {"RootFS": {"Layers": LAYERS[::-1]}}),
        ({"rootfs": ...}, {"RootFS": {"Type": "layers"}}),
        ({"rootfs": {"diff_ids": None}}, {"RootFS": {"Layers": []}}),
    ],
    ids=str,
)
def test_images_that_differ_in_something_else_are_not_the_same(ours: Values, theirs: Values) -> None:
    assert is_same_image(inspection_of(FULL_RUN, **theirs), configuration_of(FULL_RUN, **ours))
    assert not is_same_image(inspection_of(FULL_RUN, **theirs), configuration_of(FULL_RUN))
    assert not is_same_image(inspection_of(FULL_RUN), configuration_of(FULL_RUN, **ours))


def test_what_no_container_sees_does_not_matter() -> None:
    configuration = configuration_of(FULL_RUN, author="x", history=[], container="y", docker_version="1")
    assert is_same_image(inspection_of(FULL_RUN, Author="z", Comment="", Size=1, RepoTags=[]), configuration)


@pytest.mark.parametrize("missing", ["Os", "Architecture"])
@pytest.mark.parametrize("value", [..., None, ""], ids=repr)
def test_an_image_whose_platform_is_not_told_is_not_the_same(missing: str, value: Any) -> None:
    ours = configuration_of(FULL_RUN, **{missing.lower(): value})
    assert not is_same_image(inspection_of(FULL_RUN, **{missing: value}), ours)


SECOND = "2024-05-01T10:00:00"


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        (f"{SECOND}Z", f"{SECOND}Z", True),
        (f"{SECOND}Z", f"{SECOND}.000000000Z", True),
        (f"{SECOND}.1Z", f"{SECOND}.100Z", True),
        (f"{SECOND}Z", "2024-05-01t12:00:00+02:00", True),
        (f"{SECOND}.5z", "2024-05-01T04:30:00.50-05:30", True),
        (f"{SECOND}Z", f"{SECOND}+02:00", False),
        (f"{SECOND}.100000001Z", f"{SECOND}.1Z", False),
        (f"{SECOND}.1Z", f"{SECOND}.01Z", False),
        (f"{SECOND}Z", "2024-05-01T10:00:01Z", False),
        (f"{SECOND}Z", None, False),
        ("0001-01-01T00:00:00Z", None, True),
        ("0001-01-01T00:00:00Z", "", True),
        ("", None, True),
        (..., "0001-01-01T00:00:00.000Z", True),
        ("0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", False),
        ("1970-01-01T00:00:00Z", None, False),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", True),
        ("yesterday", "yesterday", True),
        ("yesterday", "today", False),
        ("yesterday", None, False),
        ("2024-02-30T10:00:00Z", "2024-02-30T10:00:00Z", True),
        ("2024-02-30T10:00:00Z", "2024-02-31T10:00:00Z", False),
        (SECOND, f"{SECOND}Z", False),
        (7, 7, True),
        ([], None, True),
        (0, f"{SECOND}Z", False),
    ],
    ids=repr,
)
def test_times_that_are_the_same(theirs: object, ours: object, same: bool) -> None:
    assert is_same_image(inspection_of({}, Created=theirs), configuration_of({}, created=ours)) is same


WORDS = st.text("ab", min_size=1, max_size=2)
TEXTS = st.lists(st.text("ab", max_size=2), min_size=1, max_size=2)
SETS: st.SearchStrategy[dict[str, dict[str, str]]] = st.dictionaries(WORDS, st.just({}), min_size=1, max_size=2)
NUMBERS = st.integers(1, 3)
HEALTHCHECKS = st.fixed_dictionaries(
    {"Test": TEXTS}, optional={"Interval": NUMBERS, "Timeout": NUMBERS, "Retries": NUMBERS}
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("Env", "Cmd", "Entrypoint", "OnBuild", "Shell"), TEXTS),
    **dict.fromkeys(("WorkingDir", "User", "StopSignal"), WORDS),
    **dict.fromkeys(("ExposedPorts", "Volumes"), SETS),
    "Labels": st.dictionaries(WORDS, st.text("ab", max_size=2), min_size=1, max_size=2),
    "Healthcheck": HEALTHCHECKS,
}
RUNS = st.fixed_dictionaries({}, optional=FIELDS)


@settings(max_examples=50)
@given(RUNS, st.sampled_from(STYLES), st.sampled_from(STYLES))
def test_any_image_is_the_same_as_itself(run: Values, theirs: str, ours: str) -> None:
    assert is_same_image(inspection_of(run, theirs), configuration_of(run, ours))


@settings(max_examples=50)
@given(RUNS, RUNS, st.sampled_from(STYLES), st.sampled_from(STYLES))
def test_any_two_images_are_the_same_only_if_all_of_it_is(one: Values, other: Values, theirs: str, ours: str) -> None:
    assert is_same_image(inspection_of(one, theirs), configuration_of(other, ours)) is (one == other)


@settings(max_examples=50)
@given(RUNS, RUNS, st.sampled_from(sorted(FIELDS)), st.sampled_from(STYLES))
def test_any_one_field_makes_the_difference(run: Values, source: Values, field: str, style: str) -> None:
    other = {name: value for name, value in {**run, field: source.get(field)}.items() if value is not None}
    same = run.get(field) == source.get(field)
    assert is_same_image(inspection_of(run, style), configuration_of(other)) is same
    assert is_same_image(inspection_of(other), configuration_of(run, style)) is same


@settings(max_examples=50)
@given(JSON, JSON)
def test_any_answer_can_be_compared(theirs: object, ours: object) -> None:
    configuration = configuration_of({}, config=ours, rootfs=ours, created=ours)
    inspected = inspection_of({}, Config=theirs, RootFS=theirs, Created=theirs, RepoDigests=theirs)
    assert is_same_image(inspected, configuration) in (True, False)
    assert shares_digest(inspected, [f"redis@{ID}"], configuration) in (True, False)


def test_an_answer_without_a_floor() -> None:
    def deep() -> list[object]:
        found: list[object] = []
        for _ in range(20_000):
            found = [found]
        return found

    assert not is_same_image(inspection_of({"Env": deep()}), configuration_of({"Env": deep()}))


@pytest.mark.parametrize(
    ("theirs", "ours", "shared"),
    [
        ([f"redis@{ID}"], [REPO_DIGEST], True),
        ([f"mirror.example/redis@{ID}"], [REPO_DIGEST], True),
        ([f"redis@{OTHER_ID}", f"redis@{ID}"], [f"x@{LAYERS[0]}", REPO_DIGEST], True),
        ([f"redis@{OTHER_ID}"], [REPO_DIGEST], False),
        ([], [REPO_DIGEST], False),
        ([f"redis@{ID}"], [], False),
        (None, [REPO_DIGEST], False),
        (..., [REPO_DIGEST], False),
        (f"redis@{ID}", [REPO_DIGEST], False),
        ([None, 7, [ID], {}], [REPO_DIGEST], False),
        (["<none>@<none>"], [REPO_DIGEST], False),
        (["redis"], [REPO_DIGEST], False),
    ],
)
def test_images_of_one_manifest(theirs: object, ours: list[str], shared: bool) -> None:
    # By their configurations they are not the same.
    inspected = inspection_of({"User": "x"}, RepoDigests=theirs)
    assert shares_digest(inspected, ours, configuration_of({})) is shared


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        (("linux", "arm64", "v8"), ("linux", "arm64", "v8"), True),
        (("linux", "arm64", ""), ("linux", "arm64", "v8"), True),
        (("linux", "arm64", "v8"), ("linux", "arm64", ...), True),
        (("linux", "amd64", ...), ("linux", "amd64", ""), True),
        (("linux", "arm", "v6"), ("linux", "arm", "v7"), False),
        (("linux", "amd64", ""), ("linux", "arm64", ""), False),
        (("windows", "amd64", ""), ("linux", "amd64", ""), False),
        (("linux", ..., ...), ("linux", "amd64", ...), False),
        ((..., "amd64", ...), ("linux", "amd64", ...), False),
    ],
)
def test_an_index_has_images_for_several_platforms(theirs: tuple[Any, ...], ours: tuple[Any, ...], same: bool) -> None:
    fields = dict(zip(("Os", "Architecture", "Variant"), theirs, strict=True))
    inspected = inspection_of({}, RepoDigests=[f"redis@{ID}"], **fields)
    configuration = configuration_of({}, **dict(zip(("os", "architecture", "variant"), ours, strict=True)))
    assert shares_digest(inspected, [REPO_DIGEST], configuration) is same
