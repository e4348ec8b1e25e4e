"""Why a process cannot start."""


class ConfigurationError(Exception):
    """A variable has a value that cannot be used; the message is one line for the operator."""
