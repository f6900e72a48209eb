"""The one error of the data room."""


class DataError(ValueError):
    """Something on disk or on the network is not as it must be; the message names file, value and remedy."""
