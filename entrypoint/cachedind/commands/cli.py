"""The commands for people. Here are their words and options; what they do is in other modules.

Exit codes are those of errors.py; 1 says that there was nothing to do, and 2 (click's) that the words make no sense.
"""

from __future__ import annotations

import contextlib

import click

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachedind.commands.inventory import Row
    from cachedind.pool.directory import Pool
    from cachedind.settings.config import Config

_pool_option = click.option(
    "--pool", "path", metavar="PATH", help="The pool's directory. [default: $CACHEDIND_POOL, or /cachedind]"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Docker-in-Docker whose build cache survives."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print facts, trials and plan as one JSON object.")
@click.argument("dockerd_arguments", nargs=-1)
def doctor(as_json: bool, dockerd_arguments: tuple[str, ...]) -> None:
    """Tell what a start would do here, and why. Starts nothing and changes nothing.

    DOCKERD_ARGUMENTS are the arguments that the container would be started with; write -- before them.
    """
    import json
    import sys

    from cachedind.commands.doctor import examine
    from cachedind.commands.tables import print_report
    from cachedind.settings.environment import environment

    report = examine(list(dockerd_arguments), environment())
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        print_report(report)
    error = report.get("error")
    sys.exit(error["exit_code"] if isinstance(error, dict) else 0)


class _Question(click.Command):
    """A command whose exit code an engine reads, which reserves 2: words that make no sense are a 1, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.show()
            ctx.exit(1)


@cli.command(cls=_Question)
@click.option("--timeout", "timeout_s", default=5, show_default=True, help="Seconds to wait for the answer.")
def healthcheck(timeout_s: int) -> None:
    """Exit 0 as soon as the inner daemon answers, 1 when it does not in time. For HEALTHCHECK and readiness probes."""
    import sys

    from cachedind.commands import health
    from cachedind.settings.environment import environment

    sys.exit(health.run(environment(), timeout_s))


# ---- the pool --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[tuple[Pool, Config]]:
    from cachedind.commands.inventory import find_pool
    from cachedind.settings.config import load
    from cachedind.settings.environment import environment

    settings = load(environment())
    pool = find_pool(path, settings)
    try:
        yield pool, settings
    finally:
        pool.close()


def _echo_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


@cli.command()
@click.argument("key", required=False)
@_json_option
@click.option("--no-sizes", is_flag=True, help="Leave out the sizes, which need a look at every file.")
@_pool_option
def ls(key: str | None, as_json: bool, no_sizes: bool, path: str | None) -> None:
    """List the pool's slots and goldens, of one KEY or of all.

    UNIQUE is what removing this slot alone would free; SHARED is what it has in common with others.
    """
    import time

    from cachedind.commands import inventory, slot_table
    from cachedind.pool import directory

    with _opened(path) as (pool, _):
        names = sorted(directory.names_in(pool.keys_fd)) if key is None else inventory.find_directories(pool, key)
        if key is not None and not names:
            raise inventory.unknown_key(pool, key)
        rows = inventory.read_rows(pool, names, time.time())
        if not no_sizes:
            rows = _measure(pool, rows)
    if as_json:
        _echo_json({"pool": pool.path, "entries": [inventory.as_json(row) for row in rows]})
    else:
        slot_table.print_rows(rows, time.time(), sizes=not no_sizes)


def _measure(pool: Pool, rows: list[Row]) -> list[Row]:
    from rich.console import Console
    from rich.progress import track

    from cachedind.commands.row_sizes import measured

    console = Console(stderr=True)
    steps = track(
        measured(pool, rows),
        "measuring",
        len(rows),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    return list(steps)


@cli.command()
@_json_option
@_pool_option
def status(as_json: bool, path: str | None) -> None:
    """Show how the pool is stored, how full it is, which slot is this container's, and how far its seeds are."""
    import time

    from cachedind.base.errors import PoolMissingError
    from cachedind.commands import pool_status, tables
    from cachedind.seeds import progress

    report: dict[str, object] = {"seeds": progress.read_status()}
    try:
        with _opened(path) as (pool, settings):
            report = {**pool_status.read_status(pool, settings, time.time()), **report}
    except PoolMissingError:
        if report["seeds"] is None:
            raise
    if as_json:
        _echo_json(report)
    else:
        tables.print_status(report, time.time())


@cli.command()
@click.argument("targets", metavar="[KEY | aside/ID]...", nargs=-1)
@click.option("--slot", "slot_ids", metavar="ID", multiple=True, help="Remove one slot. Can be repeated.")
@click.option("--seeds", is_flag=True, help="Remove the state with seeds alone, which new keys begin with.")
@click.option("--all", "everything", is_flag=True, help="Remove all keys, and what was set aside.")
@click.option("-f", "--force", is_flag=True, help="Do not ask before --all.")
@_pool_option
def rm(
    targets: tuple[str, ...],
    slot_ids: tuple[str, ...],
    seeds: bool,
    everything: bool,
    force: bool,
    path: str | None,
) -> None:
    """Remove keys with their goldens and slots, single slots, or what was set aside.

    A slot that somebody holds stays: everything else goes, and the exit code is 75.
    """
    from cachedind.commands import removal
    from cachedind.pool.keys import BASE_KEY

    if seeds:
        targets = (*targets, BASE_KEY)
    if everything == bool(targets or slot_ids):
        raise click.UsageError("say what to remove: keys, aside/ID, --slot ID, --seeds or --all")
    with _opened(path) as (pool, _):
        if everything and not force:
            _confirm(f"This removes all caches in the pool {pool.path} that nobody uses right now.")
        before = removal.read_free_bytes(pool)
        outcome = removal.remove_all(pool) if everything else removal.remove_each(pool, targets, slot_ids)
        for line in outcome.lines():
            click.echo(line)
        _tell_freed(removal.delete(pool, before))
    outcome.check()


def _confirm(question: str) -> None:
    import sys

    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Use --force where nobody can answer.")
    click.confirm(f"WARNING! {question}\nAre you sure you want to continue?", abort=True)


def _tell_freed(freed_bytes: int) -> None:
    click.echo(f"{_format_bytes(freed_bytes)} freed")


def _format_bytes(count: int) -> str:
    from cachedind.base.sizes import format_bytes

    return format_bytes(count)


@cli.command()
@_json_option
@_pool_option
def gc(as_json: bool, path: str | None) -> None:
    """Remove what the limits demand, what newer goldens supersede and what was thrown away.

    The limits are CACHEDIND_POOL_MAX_SIZE, CACHEDIND_POOL_MIN_FREE and CACHEDIND_MAX_AGE as set for this command.
    """
    import time

    from cachedind.commands import removal

    with _opened(path) as (pool, settings):
        report = removal.collect_garbage(pool, settings, time.time())
    if as_json:
        _echo_json(report._asdict() | {"evicted": [entry._asdict() for entry in report.evicted]})
        return
    for entry in report.evicted:
        click.echo(entry.line())
    _tell_freed(report.freed_bytes)
    lacking = [_format_bytes(report.lacking_bytes)] if report.lacking_bytes else []
    lacking += [f"{report.lacking_inodes} inodes"] if report.lacking_inodes else []
    if lacking:
        click.echo(f"{' and '.join(lacking)} more would have to go to keep the limits, but the rest is in use")


@cli.command()
@click.argument("key")
@_json_option
@_pool_option
def promote(key: str, as_json: bool, path: str | None) -> None:
    """Make the newest free slot of each scope of KEY its golden now, without waiting for the next start to do so.

    The exit code is 1 when there is none that is newer than the golden, free, and known to be good.
    """
    import sys

    from cachedind.commands import inventory
    from cachedind.host import procfs
    from cachedind.pool import golden, upkeep

    with _opened(path) as (pool, _):
        done = golden.promote_newest(pool, key, procfs.read_boot_id())
        if any(promotion.slot_id for promotion in done):
            upkeep.make_durable(pool, key)
    done = done or [golden.Promotion("", None, "the pool has nothing of this key")]
    if as_json:
        _echo_json([{"key": key, "scope": one.scope, "slot": one.slot_id, "why": one.words} for one in done])
    else:
        for scope, slot_id, words in done:
            where = f"key {inventory.label(key, scope)}"
            click.echo(f"{where}: {words}" if slot_id is None else f"{where}: slot {slot_id}: {words}")
    sys.exit(0 if any(promotion.slot_id for promotion in done) else 1)


# ---- seeds -----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("key", nargs=-1)
@click.option("--check", "only_check", is_flag=True, help="Read and verify the seeds, and tell which the pool lacks.")
@_json_option
@_pool_option
def seed(key: tuple[str, ...], only_check: bool, as_json: bool, path: str | None) -> None:
    """Put the seeds into the pool: into what new keys begin with, and into all keys, or only those named.

    The seeds are those of CACHEDIND_SEED (/seeds) and CACHEDIND_SEED_HOST, as set for this command. Exit code 1: some
    are bad, or with --check missing.
    """
    import sys

    from cachedind.commands import seed_command, tables
    from cachedind.settings import config, daemon_json
    from cachedind.settings.arguments import parse_daemon_arguments
    from cachedind.settings.environment import environment
    from cachedind.start.context import StartContext, make_log

    environ = environment()
    settings = config.load(environ)
    context = StartContext(settings, daemon_json.read_settings(parse_daemon_arguments([])), environ, make_log(settings))
    if only_check:
        rows = seed_command.check(context, path)
        if as_json:
            _echo_json([row._asdict() for row in rows])
        else:
            tables.print_seeds([(row.seed, row.verdict, row.images, row.size_bytes, row.why) for row in rows])
        sys.exit(0 if all(row.verdict is seed_command.Verdict.THERE for row in rows) else 1)
    filled = seed_command.fill_pool(context, path, key)
    if as_json:
        _echo_json([one.as_json() for one in filled])
    else:
        for one in filled:
            click.echo(one.line())
    sys.exit(1 if any(one.bad for one in filled) else 0)
