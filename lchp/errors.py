"""Errors that a user can mend: each carries one line that names the field, file or line and what to do."""


class LchpError(Exception):
    """Base of all mistakes a user can mend. The command line prints its message without a traceback."""


class ConfigError(LchpError):
    """A field that does not exist, a value out of range, or options that contradict each other."""


class DataError(LchpError):
    """A data set that is missing, laid out otherwise than its name promises, or damaged."""


class WeightsError(LchpError):
    """Pretrained weights that are missing or do not fit the network."""


class RunError(LchpError):
    """A run folder or checkpoint that is missing, damaged, or belongs to another config."""


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes as escapes: what a stranger named a file can then neither
    break a message's line nor steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
