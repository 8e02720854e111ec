"""What can go wrong, by kind. Each error is one line: what is wrong, where, and what to do."""

from __future__ import annotations


class Error(Exception):
    """Anything that calibatt refuses or fails at. Its subclasses also are Python's own exceptions of their kind."""


class UsageError(Error, ValueError):
    """An argument that cannot be."""


class NotFound(Error, FileNotFoundError):
    """A file or folder that is not there."""


class Unreadable(Error, OSError):
    """A file that is there and cannot be read."""


class FormatError(Error, ValueError):
    """A file that is not what it claims: truncated, altered, foreign."""


class Mismatch(Error, ValueError):
    """Sound in itself, but made for something else: another model, size or number of transformers."""


class WriteError(Error, OSError):
    """Writing failed."""


class NumericError(Error, ArithmeticError):
    """NaN or infinity where there must be none."""


class DeviceError(Error, RuntimeError):
    """A GPU that is not there, too old, lost or out of memory."""


class Cancelled(Error):
    """A callback asked to stop."""


class InternalError(Error, RuntimeError):
    """A fault of the library, or no host memory."""


class Unsupported(Error, NotImplementedError):
    """Something that calibatt does not run together with."""


class CalibattWarning(UserWarning):
    """Something that runs, and that one should know of."""


#: calibatt_status → exception (include/calibatt/c_api.h).
BY_STATUS = {
    1: UsageError,
    2: NotFound,
    3: Unreadable,
    4: FormatError,
    5: Mismatch,
    6: WriteError,
    7: NumericError,
    8: DeviceError,
    9: Cancelled,
    10: InternalError,
}
