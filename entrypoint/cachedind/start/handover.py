"""The end of a start: a child becomes dockerd, and the start itself the supervisor of it."""

from __future__ import annotations

import os

from cachedind.base.errors import ProgramMissingError
from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from cachedind.dataroot.lease import Lease
    from cachedind.start.reload import Copied


def hand_over(
    arguments: list[str],
    sockets: list[socket.socket],
    lease: Lease,
    witness: int,
    environ: dict[str, str],
    copied: Copied | None = None,
) -> NoReturn:
    """Have a child become dockerd, with the API's sockets at 3, 4 and the lock open above them, and become its
    supervisor (decisions/0016). `copied` is there when dockerd reads a merged copy of its configuration."""
    from cachedind.dataroot.lease import share_with_daemon
    from cachedind.start import supervisor

    share_with_daemon(lease)
    mask = supervisor.block_signals()
    if copied is not None:
        from cachedind.start import reload

        reload.tell(copied)
    daemon = os.fork()
    if daemon == 0:
        supervisor.become_child(mask)
        if sockets:
            from cachedind.api import listeners

            listeners.hand_over(sockets)
            environ = {**environ, "LISTEN_PID": str(os.getpid())}
        execute_engine(arguments, environ)
    # The sockets are closed by exec: when dockerd is gone, its clients are refused.
    os.set_inheritable(lease.directory_fd, True)
    if copied is not None:
        os.set_inheritable(copied.watch_fd, True)
    argv = supervisor.command(daemon, witness, lease.fd, lease.directory_fd, lease.state_name, lease.data_root)
    argv += map(str, copied or ())
    execute(argv, environ)


def execute_engine(arguments: list[str], environ: dict[str, str]) -> NoReturn:
    """Become dockerd, the real one. Raises ProgramMissingError."""
    from cachedind.host.processes import engine_environment, engine_program

    program = engine_program(environ.get("PATH", os.defpath))
    execute(["dockerd", *arguments], {**environ, **engine_environment(program)}, program)


def execute(argv: list[str], environ: dict[str, str], program: str | None = None) -> NoReturn:
    """Replace this process by `program` (argv[0] on PATH). Raises ProgramMissingError."""
    try:
        os.execvpe(program or argv[0], argv, environ)
    except OSError as error:
        raise ProgramMissingError(
            f"{argv[0]} cannot be run: {error.strerror}", "use an image built from image/Dockerfile"
        ) from error
