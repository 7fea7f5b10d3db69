"""The commands for people: `cachedind doctor`, `cachedind healthcheck`."""

from __future__ import annotations

import click


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
    from cachedind.doctor import run_doctor

    run_doctor(list(dockerd_arguments), as_json=as_json)


@cli.command()
@click.option("--timeout", "timeout_s", default=5.0, show_default=True, help="Seconds to wait for the answer.")
def healthcheck(timeout_s: float) -> None:
    """Exit 0 when the inner daemon answers, 1 when not. For HEALTHCHECK and readiness probes."""
    from cachedind.health import check

    problem = check(timeout_s)
    if problem:
        raise click.ClickException(problem)
