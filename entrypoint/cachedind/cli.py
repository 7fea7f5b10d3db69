"""The commands for people: `cachedind doctor`, `cachedind healthcheck`."""

from __future__ import annotations

import contextlib

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
    import json
    import sys

    from cachedind.config import environment
    from cachedind.doctor import examine, print_report

    report = examine(list(dockerd_arguments), environment())
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        print_report(report)
    error = report.get("error")
    sys.exit(error["exit_code"] if isinstance(error, dict) else 0)


@cli.command()
@click.option("--timeout", "timeout_s", default=5, show_default=True, help="Seconds to wait for the answer.")
def healthcheck(timeout_s: int) -> None:
    """Exit 0 when the inner daemon answers, 1 when not. For HEALTHCHECK and readiness probes."""
    import docker
    from docker.errors import DockerException

    from cachedind.config import environment, load
    from cachedind.listeners import plan_listen

    path = plan_listen(load(environment()).docker_host, "", None).socket_path
    try:
        with contextlib.closing(docker.DockerClient(base_url=f"unix://{path}", timeout=timeout_s)) as client:
            client.ping()
    except DockerException as error:
        raise click.ClickException(f"the daemon behind {path} does not answer: {error}") from error
