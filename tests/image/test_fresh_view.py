"""A job finds what docker:dind would show it: nothing of the last job, over layers and a build cache that are warm.

Jobs end as CI ends them, killed. Whoever comes next gets the slot, and whoever comes beside that a clone.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from helpers.builds import Project, overlay_project
from helpers.dind import SOCKET
from helpers.flavours import FLAVOURS, Flavour
from helpers.pools import slot_of
from helpers.registry import HOST, PASSWORD, USER, Registry, blobs, pushed_tags
from helpers.seeds import SeedVolume, docker_archive, images, run_small, small_image
from helpers.views import View, leave_everything, view

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.dind import Dind
    from helpers.engine import Engine
    from helpers.registry import Published

KILLS = 4
ROLES = ("leased", "cloned")


class Jobs:
    """Jobs of one key on a new pool, with a registry in reach if they need one."""

    def __init__(
        self, engine: Engine, flavour: Flavour, registry: Registry | None = None, args: tuple[str, ...] = ()
    ) -> None:
        self.pool = engine.volume()
        self._engine = engine
        self._flavour = flavour
        self._registry = registry
        self._options: dict[str, Any] = {"pool": self.pool, "args": args}
        if registry is not None:
            self._options |= {"network": registry.network, "args": (*args, *registry.arguments)}

    def begin(self, *, ready: bool = True, volumes: Any = None, **settings: str) -> Dind:
        """`settings` are cachedind's, without their prefix."""
        env = {**self._flavour.env, **{f"CACHEDIND_{name}": value for name, value in settings.items()}}
        dind = self._engine.dind(self._flavour.suite, env=env, volumes=volumes, **self._options)
        if ready:
            dind.wait_ready(timeout_s=120)
        return dind

    def follow(self, last: Dind, **settings: str) -> tuple[Dind, Dind]:
        """The last job is killed; one begins with its slot, and one beside that."""
        last.kill()
        leased, cloned = self.begin(ready=True, **settings), self.begin(ready=True, **settings)
        assert (leased.summary or "").startswith("warm: "), leased.describe()
        # A clone that was made in advance, where copying took long, is leased.
        assert (cloned.summary or "").startswith(("cloned: ", "warm: ")), cloned.describe()
        return leased, cloned

    def asked(self, dind: Dind, there: Published, name: str = "") -> set[str]:
        """The blobs that a pull has to ask for: with a graph driver those of layers, for it needs the configuration."""
        assert self._registry is not None
        with self._registry.listen() as heard:
            dind.docker("pull", name or there.name)
        assert [path for _, path in heard if "/manifests/" in path], "the registry was not asked at all"
        return blobs(heard) - ({there.config} if self._flavour.store == "graphdriver" else set())


@pytest.fixture(scope="module")
def registry(module_engine: Engine) -> Registry:
    """One that all may use, each with repositories of its own."""
    return Registry(module_engine)


def publish(registry: Registry, engine: Engine, repository: str) -> Published:
    """A new image there, under the tag 1."""
    return registry.publish(f"{secrets.token_hex(4)}/{repository}", "1", small_image(engine, repository))


# ---- everything that a job can leave ---------------------------------------------------------------------------------


class Story(NamedTuple):
    """What a job left everything before, and the next two found when they began."""

    empty: View
    project: Project
    build_id: str
    dinds: dict[str, Dind]
    views: dict[str, View]


@pytest.fixture(scope="module", params=FLAVOURS, ids=str)
def story(request: pytest.FixtureRequest, module_engine: Engine, registry: Registry) -> Iterator[Story]:
    engine = module_engine.scope()
    try:
        yield tell(engine, request.param, registry)
    finally:
        engine.close()


def tell(engine: Engine, flavour: Flavour, registry: Registry) -> Story:
    jobs = Jobs(engine, flavour, registry)
    stranger = jobs.begin(KEY="empty")
    by_digest = publish(registry, engine, "digest")

    def seen(dind: Dind) -> View:
        """Not every engine lists what has no name but a digest. And with the containerd store what it says of the size
        of images is the size of all layers, those of the build cache, too."""
        there = dind.docker_status("image", "inspect", by_digest.by_digest) == 0
        found = {**view(dind), "by digest": [by_digest.by_digest] if there else []}
        if flavour.store == "containerd":
            found["disk"] = [re.sub(r"^(Images: \d+ \d+) .*", r"\1", line) for line in found["disk"]]
        return found

    empty = seen(stranger)
    stranger.kill()
    first = jobs.begin()
    project = overlay_project(secrets.token_hex(8))
    first.build(project)
    build_id = first.run_image(project)
    leave_everything(first, publish(registry, engine, "pulled"), by_digest)
    assert seen(first)["by digest"]
    dinds = dict(zip(ROLES, jobs.follow(first), strict=True))
    return Story(empty, project, build_id, dinds, {role: seen(dind) for role, dind in dinds.items()})


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.timeout(600)
def test_the_next_job_sees_what_an_empty_daemon_shows(story: Story, role: str) -> None:
    assert story.views[role] == story.empty


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.timeout(600)
def test_the_next_job_builds_from_the_cache_once_it_has_the_base_again(story: Story, role: str) -> None:
    dind = story.dinds[role]
    assert dind.docker_status("image", "inspect", "base:latest") != 0, "the base was not loaded again"
    assert dind.build(story.project).uncached == []
    assert dind.run_image(story.project) == story.build_id


# ---- pipelines that were right ---------------------------------------------------------------------------------------

COMPOSE = ("compose", "--project-directory=/stack")


def compose_up(dind: Dind, commit: str) -> str:
    """What `docker compose up`, without --build, has run of a commit."""
    dind.load_base()
    dockerfile = 'FROM base:latest\nCOPY commit /commit\nCMD ["sleep", "1000"]\n'
    compose = "services: {app: {build: ., network_mode: none}}\n"
    dind.put("/stack", {"compose.yaml": compose, "Dockerfile": dockerfile, "commit": commit})
    dind.docker(*COMPOSE, "up", "--detach", timeout_s=120)
    return dind.docker(*COMPOSE, "exec", "-T", "app", "cat", "/commit")


@pytest.mark.everyday("forky-containerd")
def test_compose_up_runs_this_jobs_commit(engine: Engine, flavour: Flavour) -> None:
    jobs = Jobs(engine, flavour)
    first = jobs.begin()
    assert compose_up(first, "one") == "one"
    for dind in jobs.follow(first):
        assert compose_up(dind, "the second") == "the second"


@pytest.mark.everyday("trixie-graphdriver")
def test_all_tags_that_are_pushed_are_this_jobs(engine: Engine, flavour: Flavour, registry: Registry) -> None:
    name = f"{HOST}/{secrets.token_hex(4)}/app"
    jobs = Jobs(engine, flavour, registry)

    def push(dind: Dind, *tags: str) -> set[str]:
        dind.load_base()
        for tag in tags:
            dind.docker("tag", "base:latest", f"{name}:{tag}")
        with registry.listen() as heard:
            dind.docker("push", "--all-tags", name)
        return pushed_tags(heard)

    first = jobs.begin()
    assert push(first, "one", "stable") == {"one", "stable"}
    for dind, tag in zip(jobs.follow(first), ("two", "three"), strict=True):
        assert push(dind, tag) == {tag}


@pytest.mark.everyday("forky-containerd")
def test_a_private_image_is_nobodys_who_has_not_logged_in(engine: Engine, flavour: Flavour) -> None:
    registry = Registry(engine, private=True)
    image = small_image(engine, "private")
    name = registry.publish("private", "1", image).name
    jobs = Jobs(engine, flavour, registry)
    login = ("login", f"--username={USER}", f"--password={PASSWORD}", HOST)
    run, build = ("run", "--rm", "--network=none", name), ("build", "--tag=of-it:1", "/private")

    def prepare(dind: Dind) -> Dind:
        dind.put("/private", {"Dockerfile": f"FROM {name}\nRUN echo made >/made\n"})
        return dind

    first = prepare(jobs.begin())
    first.docker(*login)
    assert first.docker(*run) == image.text.strip()
    first.docker(*build)
    for dind in map(prepare, jobs.follow(first)):
        for words in (run, build):
            done = dind.exec("docker", f"--host={SOCKET}", *words, check=False)
            assert done.status != 0, f"{words[0]} worked without a login"
            assert re.search("unauthorized|authorization|denied|no basic auth", done.output, re.IGNORECASE)
        dind.docker(*login)
        assert dind.docker(*run) == image.text.strip()
        dind.docker(*build)


# ---- the layers of images that went ----------------------------------------------------------------------------------


class Pull(NamedTuple):
    """An image in the registry, what it prints, and by which names one job pulls it and then the next one."""

    there: Published
    text: str
    first: str
    again: str


def publish_all(registry: Registry, engine: Engine) -> dict[str, Pull]:
    """A base layer is common to all, and each has one of its own."""
    at = secrets.token_hex(4)
    found: dict[str, Pull] = {}

    def add(what: str, first: str = "name", again: str = "name", *, platforms: bool = False) -> None:
        image = small_image(engine, what)
        others = [small_image(engine, what, architecture="arm64")] if platforms else []
        there = registry.publish(f"{at}/{len(found)}", "1", image, *others)
        found[what] = Pull(there, image.text.strip(), getattr(there, first), getattr(there, again))

    add("by tag")
    add("by digest", "by_digest", "by_digest")
    add("by tag, then by digest", "name", "by_digest")
    add("an index", platforms=True)
    add("an index by digest", "by_digest", "by_digest", platforms=True)
    image = small_image(engine, "renamed")
    before, after = (registry.publish(f"{at}/{name}", "1", image) for name in ("before", "after"))
    found["under another name"] = Pull(after, image.text.strip(), before.name, after.name)
    return found


def test_a_pull_of_what_the_last_job_had_asks_for_no_layer(
    engine: Engine, flavour: Flavour, registry: Registry
) -> None:
    pulls = publish_all(registry, engine)
    relative = publish(registry, engine, "relative")
    jobs = Jobs(engine, flavour, registry)
    first = jobs.begin()
    known: set[str] = set()
    for pull in pulls.values():
        assert jobs.asked(first, pull.there, pull.first) >= pull.there.layers - known
        known |= pull.there.layers
    for dind in jobs.follow(first):
        assert images(dind) == set()
        nothing: dict[str, set[str]] = {what: set() for what in pulls}
        assert {what: jobs.asked(dind, pull.there, pull.again) for what, pull in pulls.items()} == nothing
        for pull in pulls.values():
            assert dind.docker("run", "--rm", "--network=none", pull.again) == pull.text
        # What nobody has pulled has one layer that is known all the same.
        assert jobs.asked(dind, relative) - {relative.config} == relative.layers - known != set()


REMAP = ("--userns-remap=default",)
SELDOM = {
    "remap": (FLAVOURS[0], REMAP),
    "remap-forky": (FLAVOURS[1], REMAP),
    "containerd-trixie": (Flavour("trixie", "containerd"), ()),
}


@pytest.mark.everyday("remap", "containerd-trixie")
@pytest.mark.parametrize("how", SELDOM)
def test_with_what_few_use_too(engine: Engine, how: str, registry: Registry) -> None:
    pulled = publish(registry, engine, "pulled")
    project = built_on(pulled.name)
    flavour, args = SELDOM[how]
    jobs = Jobs(engine, flavour, registry, args)
    first = jobs.begin()
    first.build(project)
    for dind in jobs.follow(first):
        assert images(dind) == set()
        assert jobs.asked(dind, pulled) == set()
        assert dind.build(project).uncached == []


@pytest.mark.everyday("forky-containerd")
def test_an_image_that_has_lost_a_layer_is_whole_when_it_was_pulled_again(
    engine: Engine, flavour: Flavour, registry: Registry
) -> None:
    image = small_image(engine, "image")
    there = registry.publish(f"{secrets.token_hex(4)}/image", "1", image)
    jobs = Jobs(engine, flavour, registry)
    first = jobs.begin()
    first.docker("pull", there.name)
    first.kill()
    lost = "find /volume/keys/*/slots/*/data -name text -printf '%h\\n'"
    assert engine.in_volume(jobs.pool, f'for top in $({lost}); do rm -rf "${{top%/*}}"; echo gone; done') == "gone\n"
    dind = jobs.begin()
    dind.docker("pull", there.name)
    assert dind.docker("run", "--rm", "--network=none", there.name) == image.text.strip()


def built_on(name: str) -> Project:
    dockerfile = f"FROM {name}\nCOPY nonce /nonce\nRUN cat /nonce >/made\n"
    return Project("built-on:1", {"Dockerfile": dockerfile, "nonce": secrets.token_hex(8)}, (), 2)


@pytest.mark.timeout(600)
def test_no_prune_reaches_what_is_kept(engine: Engine, flavour: Flavour, registry: Registry) -> None:
    below, alone = publish(registry, engine, "below"), publish(registry, engine, "alone")
    project = built_on(below.name)
    jobs = Jobs(engine, flavour, registry)

    def asked(dind: Dind) -> set[str]:
        return jobs.asked(dind, below) | jobs.asked(dind, alone)

    first = jobs.begin()
    assert asked(first) >= below.layers | alone.layers
    first.build(project)
    first.kill()

    leased, thrown_away = jobs.begin(), jobs.begin(ACCESS="ro")
    assert "Total reclaimed space: 0B" in leased.docker("image", "prune", "--all", "--force")
    assert asked(leased) == set()
    assert leased.build(project).uncached == []
    thrown_away.docker("system", "prune", "--all", "--force", "--volumes")
    assert asked(thrown_away) == set()
    leased.kill()
    thrown_away.kill()

    # Twice, as the next job begins elsewhere after the first time.
    for _ in range(2):
        pruned = jobs.begin()
        assert pruned.build(project).uncached == []
        for _ in range(2):
            pruned.docker("system", "prune", "--all", "--force", "--volumes")
            assert asked(pruned) == set()
        pruned.docker("image", "prune", "--all", "--force")
        pruned.kill()
    last = jobs.begin()
    assert slot_of(last) == slot_of(pruned)
    assert images(last) == set()
    assert asked(last) == set()


@pytest.mark.timeout(600)
def test_starts_that_are_killed_at_any_moment_change_nothing(
    engine: Engine, flavour: Flavour, registry: Registry
) -> None:
    seed = random.randrange(2**32)
    print(f"random seed: {seed}")
    dice = random.Random(seed)
    pulled = publish(registry, engine, "pulled")
    project = built_on(pulled.name)
    jobs = Jobs(engine, flavour, registry)
    started = time.monotonic()
    first = jobs.begin()
    whole_s = time.monotonic() - started
    first.build(project)
    # What a private daemon has to remove.
    first.docker("create", "--name=left", project.tag, "true")
    first.kill()
    for _ in range(KILLS):
        victim = jobs.begin(ready=False)
        time.sleep(dice.uniform(0, 1.2 * whole_s))
        victim.kill()
    # The last victim may have left a state that is not to be trusted yet, and lent to nobody.
    survivor = jobs.begin()

    def check(dind: Dind) -> None:
        seen = view(dind)
        assert (seen["images"], seen["containers"]) == ([], [])
        assert jobs.asked(dind, pulled) == set()
        assert dind.build(project).uncached == []
        assert not [line for line in dind.warnings if "aside" in line]

    check(survivor)
    for dind in jobs.follow(survivor):
        check(dind)


# ---- what stays ------------------------------------------------------------------------------------------------------


def test_seeds_are_there_whatever_a_job_did_with_their_names(engine: Engine, flavour: Flavour) -> None:
    seeds = [small_image(engine, name) for name in ("removed:1", "retagged:1", "untouched:1")]
    names = {seed.name for seed in seeds}
    source = SeedVolume(engine)
    source.put({"seeds.tar": docker_archive(*seeds)})
    jobs = Jobs(engine, flavour)
    first = jobs.begin(volumes=source.mount)
    assert images(first) == names
    first.docker("image", "rm", "removed:1")
    first.docker("tag", "untouched:1", "retagged:1")
    first.docker("tag", "untouched:1", "mine:1")
    first.kill()
    for _ in ROLES:
        dind = jobs.begin(volumes=source.mount)
        assert images(dind) == names
        run_small(dind, seeds)
    without = jobs.begin()
    assert images(without) == set(), "seeds that nobody has named"


@pytest.mark.everyday("trixie-graphdriver-images", "forky-containerd-all")
@pytest.mark.parametrize("keep", ["images", "all"])
def test_kept_images_have_their_names_and_run(engine: Engine, flavour: Flavour, keep: str) -> None:
    jobs = Jobs(engine, flavour)
    first = jobs.begin()
    project = overlay_project(secrets.token_hex(8))
    first.build(project)
    build_id = first.run_image(project)
    first.docker("tag", project.tag, "second.example.com/name:2")
    names = sorted(view(first)["images"])
    assert len(names) == 3
    leased, cloned = jobs.follow(first, KEEP=keep)
    for dind in (leased, cloned):
        assert sorted(view(dind)["images"]) == names
        assert dind.run_image(project) == build_id
    cloned.kill()
    for dind in jobs.follow(leased):
        assert images(dind) == set(), "they were kept for a job that has ended"


@pytest.mark.everyday("forky-containerd")
def test_kept_containers_keep_their_images_and_no_others(engine: Engine, flavour: Flavour) -> None:
    jobs = Jobs(engine, flavour)
    first = jobs.begin()
    used, unused = small_image(engine, "used:1"), small_image(engine, "unused:1")
    first.put("/left", {"images.tar": docker_archive(used, unused)})
    first.docker("load", "--input=/left/images.tar")
    first.docker("create", "--name=user", "--network=none", "used:1")
    for dind in jobs.follow(first, KEEP="containers"):
        assert images(dind) == {"used:1"}
        assert dind.docker("start", "--attach", "user") == used.text.strip()


def leave_some(dind: Dind) -> View:
    """Of each kind one, none of which changes by itself; the view with all of that."""
    dind.load_base()
    dind.docker("volume", "create", "mine")
    dind.docker("network", "create", "mine")
    dind.docker("create", "--name=mine", "--network=mine", "--volume=mine:/mine", "base:latest", "true")
    dind.docker("tag", "base:latest", "mine:1")
    found = view(dind)
    assert all(
        [line for line in found[what] if "mine" in line] for what in ("volumes", "networks", "containers", "images")
    )
    return found


@pytest.mark.everyday("trixie-graphdriver")
def test_without_a_pool_everything_stays(engine: Engine, flavour: Flavour) -> None:
    volume = engine.volume()
    first = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    first.wait_ready()
    before = leave_some(first)
    first.kill()
    second = engine.dind(flavour.suite, volume=volume, env=flavour.env)
    second.wait_ready()
    assert view(second) == before


@pytest.mark.everyday("trixie-graphdriver-beside", "forky-containerd-none")
@pytest.mark.parametrize("others", ["none", "beside"])
def test_a_container_that_is_started_again_is_the_same_job(engine: Engine, flavour: Flavour, others: str) -> None:
    """Whether others come and go beside it."""
    jobs = Jobs(engine, flavour)
    dind = jobs.begin()
    before = leave_some(dind)
    if others == "beside":
        jobs.begin().kill()
    dind.container.restart()
    dind.wait_ready()
    assert view(dind) == before
