"""The errors of the data room."""


class DataError(ValueError):
    """Something on disk or on the network is not as it must be; the message names file, value and remedy."""


class OtherDocument(DataError):
    """A JSON file that is about something else than boxes."""


class SetNotFound(DataError):
    """There is no set of a task at all, as opposed to one that is there and broken."""
