"""The program: `cachedind boot …` is the container's start, everything else is for people."""

from __future__ import annotations

import sys


def main() -> int:
    """Run, and turn errors into one line and an exit code."""
    from cachedind.errors import CachedindError

    words = sys.argv[1:]
    try:
        if words[:1] == ["boot"]:
            from cachedind.boot import boot
            from cachedind.config import environment

            boot(words[1:], environment())
        if words[:1] == ["nest"]:
            from cachedind.nest import nest
            from cachedind.config import environment

            nest(words[1:], environment())
        from cachedind.cli import cli

        cli.main(prog_name="cachedind")
    except CachedindError as error:
        _report(error)
        return error.exit_code
    return 0


def _report(error: "CachedindError") -> None:
    from cachedind.config import environment, load
    from cachedind.errors import CachedindError
    from cachedind.log import Log

    try:
        log = Log(as_json=load(environment()).log_json)
    except CachedindError:
        log = Log()
    log.error(error)


if __name__ == "__main__":
    sys.exit(main())
