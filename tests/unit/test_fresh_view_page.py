"""docs/fresh-view.md: each row of what a job can leave is made by a test, which looks for it in the next job."""

from __future__ import annotations

import re
from pathlib import Path

from helpers.views import THINGS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/fresh-view.md"
IMAGES = ROOT / "tests/image"

# By the beginning of a row: what of it test_fresh_view leaves behind (helpers/views.py), and further tests.
ROWS: dict[str, tuple[set[str], set[str]]] = {
    "containers, also": (
        {"a container that ran", "a container that runs", "one that restarts"},
        {"test_cleaning.py::test_kept_containers_keep_what_they_use_and_do_not_run_meanwhile"},
    ),
    "images: names": (
        {
            "a loaded image", "two names on one image", "an imported image", "a built image", "a committed image",
            "a built image without a name", "an image that has lost its name", "a pulled image", "an image by digest",
        },
        {"test_fresh_view.py::test_kept_images_have_their_names_and_run"},
    ),
    "layers of images": (set(), {"test_fresh_view.py::test_a_pull_of_what_the_last_job_had_asks_for_no_layer"}),
    "build cache of `docker build`": (
        set(),
        {"test_fresh_view.py::test_the_next_job_builds_from_the_cache_once_it_has_the_base_again"},
    ),
    "cache mounts": (set(), {"test_cache_mounts.py::test_instances_write_to_a_cache_mount_side_by_side"}),
    "cache of the classic builder": ({"an image of the classic builder"}, set()),
    "cache of `docker-container` builders": (
        set(),
        {"test_kept.py::test_a_builders_state_stays_and_is_there_beside_it_and_no_more_than_three_do"},
    ),
    "history of builds": (set(), {"test_fresh_view.py::test_the_next_job_sees_what_an_empty_daemon_shows"}),
    "networks": ({"a network"}, set()),
    "volumes": (
        {"an anonymous volume", "a named volume"},
        {"test_cleaning.py::test_kept_volumes_stay_also_without_their_containers"},
    ),
    "swarm": (
        {"a swarm with a service"},
        {"test_cleaning.py::test_a_swarm_is_ended_and_its_services_do_not_run_again"},
    ),
    "managed plugins": ({"a plugin"}, set()),
    "seeds": (set(), {"test_fresh_view.py::test_seeds_are_there_whatever_a_job_did_with_their_names"}),
    "what it wrote into": (set(), {"test_planted.py"}),
    "`docker login`": (
        {"a context", "a builder"},
        {"test_fresh_view.py::test_a_private_image_is_nobodys_who_has_not_logged_in"},
    ),
    "data under another userns-remap": (
        set(),
        {"test_remap.py::test_a_remapped_job_and_one_without_share_a_key_and_see_nothing_of_others"},
    ),
    "containers that outlive their daemon": (set(), {"test_restarts.py::test_what_survives_keeps_its_slot"}),
}  # fmt: skip


def test_each_row_is_made_and_each_thing_has_a_row() -> None:
    section = PAGE.read_text().split("## What a job can leave")[1].split("\n## ")[0]
    rows = [line[2:].partition(" |")[0] for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(ROWS)
    for row, beginning in zip(rows, ROWS, strict=True):
        assert row.startswith(beginning)
    made = [thing for things, _ in ROWS.values() for thing in things]
    assert sorted(made) == sorted(thing.what for thing in THINGS)
    assert all(things or tests for things, tests in ROWS.values())


def test_the_tests_are_there() -> None:
    for _, tests in ROWS.values():
        for test in tests:
            name, _, function = test.partition("::")
            source = (IMAGES / name).read_text()
            assert re.search(rf"^def {function or 'test_'}", source, re.MULTILINE), test
