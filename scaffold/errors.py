"""The one exception a user's mistake raises."""


class RequestError(Exception):
    """The request is wrong: one line that says why and what would work. The command line exits 2."""
