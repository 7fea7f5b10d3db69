"""Every way a start can fail: one exit code, one cause, one hint.

The codes are those of sysexits(3), so that a CI log tells a bad setting (64, 78) from a bad disk (74), a busy
data-root (75) and missing privileges (77). 143 (128 + SIGTERM) is not here: an unhandled signal makes it.
"""

from __future__ import annotations

from enum import StrEnum


class CachedindError(Exception):
    """A start that cannot go on.

    `cause` says what is wrong and why, `hint` how to mend it; both are single lines without a full stop at
    the end of the hint's command, so that it can be copied.
    """

    exit_code = 70

    def __init__(self, cause: str, hint: str) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint

    def __reduce__(self) -> tuple[type[CachedindError], tuple[str, str]]:
        # An error of a child process is pickled; Exception would leave the hint out.
        return type(self), (self.cause, self.hint)


class SettingsError(CachedindError):
    """A setting in the environment has a value that means nothing (EX_USAGE)."""

    exit_code = 64


class EngineTooOldError(CachedindError):
    """The data-root was written by a newer engine than this one (EX_DATAERR)."""

    exit_code = 65


class DataRootInvalidError(CachedindError):
    """Something in the data-root is not what it must be, for example a link where a directory belongs (EX_DATAERR)."""

    exit_code = 65


class CleaningError(CachedindError):
    """What the last job left in a slot cannot be removed (EX_DATAERR); a start goes on with another slot."""

    exit_code = 65


class DaemonEnd(StrEnum):
    """What a private daemon did instead of answering."""

    BY_ITSELF = "ended by itself"
    """With a status of its own, and words in its log. Only this speaks against the data, if it comes up elsewhere."""
    BY_A_SIGNAL = "was killed"
    """Or its containerd was: somebody's doing, or the kernel's for want of memory."""
    SILENT = "is silent"
    """Alive, and without an answer so far."""


class PrivateDaemonError(CleaningError):
    """A private daemon did not come up (EX_DATAERR); what that says of the data depends on how it ended."""

    end = DaemonEnd.SILENT


class DaemonConfigMissingError(CachedindError):
    """The configuration file that --config-file names is not there (EX_NOINPUT)."""

    exit_code = 66


class PoolMissingError(CachedindError):
    """There is no pool where a command for people looks for one (EX_NOINPUT)."""

    exit_code = 66


class NotInPoolError(CachedindError):
    """A command for people names something that the pool does not have (EX_NOINPUT)."""

    exit_code = 66


class NoUsableDriverError(CachedindError):
    """No storage driver that may be used works on the data-root's filesystem (EX_UNAVAILABLE)."""

    exit_code = 69


class DriverUnavailableError(CachedindError):
    """The data-root's own storage driver does not work here (EX_UNAVAILABLE)."""

    exit_code = 69


class ProgramMissingError(CachedindError):
    """A program of the image could not be run (EX_UNAVAILABLE)."""

    exit_code = 69


class ListenError(CachedindError):
    """An address of the API cannot be bound (EX_OSERR)."""

    exit_code = 71


class HostPreparationError(CachedindError):
    """The container's mounts, cgroups or firewall tools could not be prepared (EX_OSERR)."""

    exit_code = 71


class CertificateError(CachedindError):
    """The TLS certificates are unusable and could not be made (EX_CANTCREAT)."""

    exit_code = 73


class DataRootUnwritableError(CachedindError):
    """The data-root is read-only, full, or failing (EX_IOERR)."""

    exit_code = 74


class UnexpectedSystemError(CachedindError):
    """A system call failed that should not have (EX_IOERR)."""

    exit_code = 74


class PoolUnusableError(CachedindError):
    """The pool is read-only, full, failing, or of a later version (EX_IOERR); a start goes on without it unless
    CACHEDIND_STRICT is set."""

    exit_code = 74


class DataRootBusyError(CachedindError):
    """Another daemon holds the data-root, or works in the exec-root (EX_TEMPFAIL)."""

    exit_code = 75


class SlotHeldError(CachedindError):
    """A slot that was to be removed is in use; everything else that was to go is gone (EX_TEMPFAIL)."""

    exit_code = 75


class NotPrivilegedError(CachedindError):
    """The container lacks the privileges that dockerd needs (EX_NOPERM)."""

    exit_code = 77


class DriverConflictError(CachedindError):
    """An explicit choice contradicts what the data-root holds, or another explicit choice (EX_CONFIG)."""

    exit_code = 78


class DaemonConfigError(CachedindError):
    """daemon.json or an argument of dockerd cannot be understood (EX_CONFIG)."""

    exit_code = 78


class UnsafeLockError(CachedindError):
    """The data-root is on a filesystem whose locks another machine may not see (EX_CONFIG)."""

    exit_code = 78


class StrictError(CachedindError):
    """A degradation, with CACHEDIND_STRICT set (EX_CONFIG)."""

    exit_code = 78


def markdown_table() -> str:
    """docs/errors.md's table: every exit code and what it means."""
    rows = sorted((kind.exit_code, kind.__name__, kind.__doc__ or "") for kind in CachedindError.__subclasses__())
    lines = ["| exit code | error | meaning |", "| --- | --- | --- |"]
    lines += [f"| {code} | {name.removesuffix('Error')} | {' '.join(doc.split())} |" for code, name, doc in rows]
    return "\n".join(lines) + "\n"
