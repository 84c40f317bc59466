"""The exception that a command turns into one line and exit status 2."""


class UserError(ValueError):
    """A user's mistake: wrong path, impossible setting, broken file. The message names the fix."""


class OtherFormat(UserError):
    """A file was written by another version of the package, in a format that this one does not read."""


class StorageFailed(UserError):
    """The storage failed under a stage. What was saved is intact."""
