"""The program: `cachedind boot …` is the container's start, everything else is for people."""

from __future__ import annotations

import os
import sys

from cachedind.base.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from cachedind.base.errors import CachedindError


def main() -> int:
    """Run, and turn errors into one line and an exit code."""
    words = sys.argv[1:]
    certificates = None
    if words[:1] == ["boot"]:
        from cachedind.api import tls_child

        # Before all else: whatever is imported until then, its own imports wait for.
        certificates = tls_child.expect(words[1:], os.environ)

    if words[:1] == ["healthcheck"]:
        from cachedind.commands import health

        timeout_s = health.parse_timeout(words[1:])
        if timeout_s is not None:
            return health.run(os.environ, timeout_s)

    from cachedind.base.errors import CachedindError, UnexpectedSystemError
    from cachedind.settings.environment import environment

    try:
        if words[:1] == ["boot"]:
            from cachedind.start.boot import boot

            boot(words[1:], environment(), certificates)
        if words[:1] == ["dind"]:
            from cachedind.start.boot import dind

            dind(words[1:], environment())
        from cachedind.commands.cli import cli

        cli.main(prog_name="cachedind")
    except CachedindError as error:
        return _report(error)
    except OSError as error:
        # What no step expected of the machine: a disk that fails, a file that cannot be. Still one line, not a
        # traceback.
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _report(UnexpectedSystemError(f"the system refuses: {what}", "check the volume, and the kernel's log"))
    return 0


def _report(error: CachedindError) -> int:
    from cachedind.base.errors import SettingsError
    from cachedind.base.log import Log
    from cachedind.settings.config import load
    from cachedind.settings.environment import environment

    try:
        log = Log(as_json=load(environment()).log_json)
    except SettingsError:
        log = Log()
    log.error(error)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
