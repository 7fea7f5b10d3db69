"""How cachedind speaks: one line per event on standard error, as text for people or as JSON for machines."""

from __future__ import annotations

import os
import re
import time
from enum import IntEnum

from cachedind.base.errors import CachedindError, StrictError
from cachedind.base.model import Degradation

_CREDENTIALS = re.compile(r"://[^/@\s\"]+@")
"""A user and a password in an address: of a proxy, a mirror, a daemon."""


class Level(IntEnum):
    """How much is said. The names are dockerd's."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


class Log:
    """Writes lines to a file descriptor, each in one write(2), so that lines of several processes do not mix."""

    def __init__(self, *, level: Level = Level.INFO, as_json: bool = False, strict: bool = False, fd: int = 2) -> None:
        self._level = level
        self._json = as_json
        self._strict = strict
        self._fd = fd

    @property
    def strict(self) -> bool:
        """Whether `degraded` ends the start: who would change something before it, asks."""
        return self._strict

    def tells(self, level: Level) -> bool:
        """Whether lines of that level are written: who has to work for one, asks."""
        return level >= self._level

    def debug(self, message: str, **fields: object) -> None:
        self._write(Level.DEBUG, message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._write(Level.INFO, message, fields)

    def warn(self, message: str, **fields: object) -> None:
        self._write(Level.WARN, message, fields)

    def degraded(self, degradation: Degradation) -> None:
        """Tell what works less well than it could.

        Raises StrictError instead when CACHEDIND_STRICT is set.
        """
        what, why, cost, mend = degradation
        if self._strict:
            raise StrictError(f"{what}: {why}; {cost} (CACHEDIND_STRICT is set)", mend)
        self._write(Level.WARN, str(degradation), {"what": what, "why": why, "cost": cost, "mend": mend})

    def error(self, error: CachedindError) -> None:
        fields = {"cause": error.cause, "hint": error.hint, "exit_code": error.exit_code}
        self._write(Level.ERROR, f"{error.cause}; {error.hint}", fields)

    def _write(self, level: Level, message: str, fields: dict[str, object]) -> None:
        if not self.tells(level):
            return
        line = self._json_line(level, message, fields) if self._json else _text_line(level, message)
        data = _CREDENTIALS.sub("://***@", line).encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._fd, data) :]

    def _json_line(self, level: Level, message: str, fields: dict[str, object]) -> str:
        import json  # only here: text is the default, and a start that logs text has no use for it

        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return json.dumps({"time": stamp, "level": level.name.lower(), "msg": message, **fields}) + "\n"


def _text_line(level: Level, message: str) -> str:
    # A message may quote text from outside (file names, a holder's host name): it stays on its one line.
    flat = "".join(char if char.isprintable() else " " for char in message)
    mark = "" if level <= Level.INFO else f"{level.name.lower().replace('warn', 'warning')}: "
    return f"cachedind: {mark}{flat}\n"
