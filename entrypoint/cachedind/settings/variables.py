"""The table of all CACHEDIND_ variables: name, default, parser and meaning.

The table in docs/environment.md is generated from it (scripts/update-docs), so the two cannot drift apart.
"""

from __future__ import annotations

import re

from cachedind.base.typed import TYPE_CHECKING, NamedTuple
from cachedind.settings import values
from cachedind.settings.environment import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT_NAMES = ("CI_PROJECT_PATH", "GITHUB_REPOSITORY", "CI_REPO", "DRONE_REPO", "BUILDKITE_PIPELINE_SLUG")
"""The variables with the project's name in GitLab, GitHub, Woodpecker, Drone and Buildkite."""

# What Kubernetes tells each pod about a Service, and docker --link about a container, whose name begins with
# "cachedind": not meant for us, and where a service has such a name nobody can switch it off.
_OF_A_LINK = (
    r"CACHEDIND_(?:\w+_)?(?:NAME|ENV_\w+|SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
)


# The name of the job in GitLab, GitHub, Woodpecker, Drone and Buildkite.
_JOB_NAMES = ("CI_JOB_NAME", "GITHUB_JOB", "CI_WORKFLOW_NAME/CI_STEP_NAME", "DRONE_STAGE_NAME", "BUILDKITE_STEP_KEY")


class Variable(NamedTuple):
    """One CACHEDIND_ variable: its name without the prefix, its default as text, its parser and its meaning."""

    name: str
    default: str
    parse: Callable[[str], object]
    accepts: str
    meaning: str
    empty_counts: bool = False
    """Whether an empty value means something, and is not the same as not set."""
    instead: tuple[str, ...] = ()
    """Full names of other tools' variables that are read, in this order, when this one is not set; A/B is the values
    of both."""


VARIABLES = (
    Variable(
        "POOL",
        "auto",
        values.parse_pool,
        "an absolute path, auto, or empty",
        "The pool's directory: a mount that all instances on a host share, which gives each of them a data-root of its "
        "own. auto: `/cachedind` if something is mounted there, else no pool. Empty: never a pool.",
        empty_counts=True,
    ),
    Variable(
        "POOL_MAX_SIZE",
        "none",
        values.parse_size_or_none,
        "a size; none",
        "How much the whole pool may hold. Above that, slots and goldens are evicted, least recently used first, never "
        "a slot in use.",
    ),
    Variable(
        "POOL_MIN_FREE",
        "auto",
        values.parse_free_bytes,
        "a size; auto, none",
        "How much of the pool's filesystem to keep free, by evicting as for POOL_MAX_SIZE. auto: 5 %, at most 10 GiB. "
        "Unless it is none, 5 % of the inodes are kept free, too.",
    ),
    Variable(
        "MAX_AGE",
        "none",
        values.parse_age_s,
        "a time above zero: 12h, 14d; none",
        "Slots and goldens that nobody used for that long are evicted.",
    ),
    Variable(
        "UNUSED_MAX_AGE",
        "14d",
        values.parse_age_s,
        "a time above zero: 12h, 14d; none",
        "Layers of images that no job of a key had at its end for that long are removed, when the next one starts.",
    ),
    Variable(
        "CACHE_MAX_SIZE",
        "auto",
        values.parse_size_or_auto,
        "a size; auto",
        "How large the build cache of one data-root may grow, images not counted. It sets the engine's `builder.gc`, "
        "unless your own daemon.json does. auto: the engine's default; in a pool a quarter of the pool's filesystem.",
    ),
    Variable(
        "KEY",
        "default",
        values.parse_key,
        "any text",
        "Whose cache it is: instances with the same key share one. Not set: the project's name from "
        f"{', '.join(f'`{name}`' for name in PROJECT_NAMES)}, the first that is set.",
        instead=PROJECT_NAMES,
    ),
    Variable(
        "SCOPE",
        "",
        values.parse_scope,
        "any text",
        "Which job of the project it is: each begins with what it has left itself, and only its own states replace "
        "each other; a job that has none yet begins with another one's. Not set: the job's name from "
        f"{', '.join(f'`{name}`' for name in _JOB_NAMES)}, the first that is set, without "
        "the ` 1/3` of a parallel job.",
        instead=_JOB_NAMES,
    ),
    Variable(
        "FALLBACK_KEYS",
        "",
        values.parse_keys,
        "keys, separated by commas or line ends",
        "Whose cache to begin with while KEY has none yet: the first of these keys that has one.",
    ),
    Variable(
        "ACCESS",
        "rw",
        values.parse_is_read_only,
        "rw, ro",
        "ro: the instance gets a clone that is thrown away at its end, and nothing it does reaches the pool's caches.",
    ),
    Variable(
        "KEEP",
        "none",
        values.parse_keep,
        "containers, networks, volumes, `volumes:PATTERN`, images, separated by commas; all, none",
        "What of the last job stays when a slot of the pool is used again, besides build cache. `volumes:PATTERN`: "
        "volumes with such names (`volumes:db_*`), of each pattern the three that were used last. Without a pool "
        "everything stays.",
    ),
    Variable(
        "SEED",
        "auto",
        values.parse_seeds,
        "absolute paths and globs, separated by commas or line ends; auto, or empty",
        "Image archives (of `docker save` or OCI, also .gz .zst .xz), OCI layouts, and directories of them, whose "
        "images are loaded before the job. auto: `/seeds` if there is such a directory. Empty: none.",
        empty_counts=True,
    ),
    Variable(
        "SEED_HOST",
        "",
        values.parse_seed_host,
        "`unix:///host/docker.sock`, `tcp://host:2376`",
        "Another daemon, from which those of SEED_IMAGES that are missing are fetched.",
    ),
    Variable(
        "SEED_HOST_CERT_PATH",
        "",
        values.parse_optional_path,
        "an absolute path",
        "The directory with `ca.pem`, `cert.pem` and `key.pem` for SEED_HOST=tcp://…; without it TCP is not encrypted.",
    ),
    Variable(
        "SEED_IMAGES",
        "",
        values.parse_images,
        "names and globs of images, separated by commas or blanks",
        "Which images of SEED_HOST: `postgres:17, registry.example/ci/*`.",
    ),
    Variable(
        "SEED_WHEN",
        "before",
        values.parse_is_after,
        "before, after",
        "before: the daemon answers when the seeds are loaded. after: it answers at once, and they are loaded in the "
        "background (`cachedind status` shows the progress).",
    ),
    Variable(
        "LISTEN",
        "0.0.0.0",
        values.parse_listen,
        "IP addresses, separated by commas; none",
        "Where the API's TCP socket listens, on port 2376 with TLS, else 2375: `127.0.0.1`, `10.0.0.5, ::1`, or with a "
        "port of its own `127.0.0.1:2400`, `[::1]:2400`. 0.0.0.0: all addresses, IPv6 too. none: no TCP socket, and no "
        "certificates. A container started as `dockerd …` with arguments listens where those say.",
    ),
    Variable(
        "LOCK_TIMEOUT",
        "10s",
        values.parse_duration_s,
        "a time: 30s, 5m; 0 does not wait",
        "How long to wait for a data-root that another daemon holds, before exit 75.",
    ),
    Variable(
        "IMAGE_STORE",
        "auto",
        values.parse_image_store,
        "auto, graphdriver, containerd",
        "Where the engine keeps images. auto: what the data-root has, else the engine's own default "
        "(graphdriver before 29, containerd from 29 on).",
    ),
    Variable(
        "STORAGE_DRIVER",
        "auto",
        values.parse_storage_driver,
        "auto, overlay2, fuse-overlayfs, btrfs, zfs, vfs; overlayfs, native for the containerd store",
        "The storage driver or snapshotter. auto: what the data-root has, else the best one that a trial proves.",
    ),
    Variable(
        "ALLOW_VFS",
        "0",
        values.parse_bool,
        "0, 1",
        "Whether vfs (containerd store: native), which copies every layer in full, may be chosen when nothing "
        "else works.",
    ),
    Variable(
        "ALLOW_NETWORK_FS",
        "0",
        values.parse_bool,
        "0, 1",
        "Whether to use a data-root on a filesystem whose locks other machines may not see (nfs, cifs, ceph, 9p, "
        "virtiofs, fuse). Two daemons on one data-root destroy it.",
    ),
    Variable(
        "ALLOW_EPHEMERAL_POOL",
        "0",
        values.parse_bool,
        "0, 1",
        "Whether `CACHEDIND_POOL` may name a directory in the container's own layer. Such a pool is removed with the "
        "container; usually somebody just forgot to mount a volume there.",
    ),
    Variable(
        "STRICT",
        "0",
        values.parse_bool,
        "0, 1",
        "Whether a degradation (a slower driver, a cache that will not survive, …) ends the start instead of being "
        "logged.",
    ),
    Variable("LOG_FORMAT", "text", values.parse_is_json, "text, json", "The form of cachedind's own lines on stderr."),
    Variable("LOG_LEVEL", "info", values.parse_level, "debug, info, warn, error", "How much cachedind says."),
    Variable(
        "KILL_AT",
        "",
        values.parse_point,
        "the name of a step",
        "For tests of crash safety: the start ends itself with SIGKILL at that step.",
    ),
)


def is_known(name: str) -> bool:
    """Whether a CACHEDIND_ name is one of ours, or set by Kubernetes or docker --link."""
    return any(name == PREFIX + variable.name for variable in VARIABLES) or re.fullmatch(_OF_A_LINK, name) is not None


def suggest(name: str) -> str:
    """The variable that an unknown one looks like, or "" where it looks like none of them.

    That is a typing error, or a name of several words some of which are left out (CACHE_SIZE for CACHE_MAX_SIZE). One
    word alone does not count: CACHEDIND_IMAGE is what projects call the image, and nobody means IMAGE_STORE by it.
    """
    import difflib  # only here: most starts have no use for it

    # Without the prefix, which all have in common and which would make any two names look alike.
    own = name.removeprefix(PREFIX).upper()
    near = difflib.get_close_matches(own, [variable.name for variable in VARIABLES], n=1, cutoff=0.8)
    words = own.split("_")
    if not near and len(words) > 1:
        near = [variable.name for variable in VARIABLES if set(words) <= set(variable.name.split("_"))]
    return PREFIX + near[0] if near else ""


def markdown_table() -> str:
    """docs/environment.md's table of cachedind's own variables."""
    lines = ["| variable | default | accepts | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{PREFIX}{v.name}` | {f'`{v.default}`' if v.default else ''} | {v.accepts} | {v.meaning} |"
        for v in VARIABLES
    ]
    return "\n".join(lines) + "\n"
