"""The exceptions that a command reports in one line, and their exit statuses."""

MISTAKE = 2  # exit status of a command after a UserError
TRY_AGAIN = 75  # exit status after StorageFailed, equal to EX_TEMPFAIL, which `os` defines on Unix only


class UserError(ValueError):
    """A user's mistake, such as a wrong path or an impossible setting. Its message names the fix."""


class OtherFormat(UserError):
    """A file was written by another version of the package, in a format that this version does not read."""


class StorageFailed(UserError):
    """The storage failed while a stage used it. Files that were saved before are intact."""


def require_positive(name: str, value: int) -> None:
    """Raises UserError if the count `value`, called `name` in the message, is less than 1."""
    if value < 1:
        raise UserError(f"{name} is {value}; it must be 1 or more")
