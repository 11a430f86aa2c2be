"""perm_ray's errors: one small tree, each also a standard-library error.

A message is one sentence or two: what was expected, what was found, what to do. Every class is
picklable with its message intact, so that an error raised in an actor reads the same on the driver.
`UserError`s are the caller's to mend (the command line prints them without a traceback and exits
with 2); `RunError`s happen while a run is under way (exit 1).
"""


class PermRayError(Exception):
    """Anything perm_ray raises on purpose."""


class UserError(PermRayError, ValueError):
    """Something the user gave cannot be used as it is."""


class ConfigError(UserError):
    """The configuration has an unknown key, a wrong type or a value that makes no sense."""


class DataError(UserError):
    """A data file is missing, empty or has bad lines."""


class ModelError(UserError):
    """A model name or folder cannot be resolved or does not fit the configuration."""


class RunError(PermRayError, RuntimeError):
    """A run cannot go on."""


class ActorFailedError(RunError):
    """A remote actor died or raised; the message names role, node and step."""


class ActorTimeoutError(RunError, TimeoutError):
    """A remote call did not answer within its bound; the message names role, node and step."""


class JudgeFailureRateError(RunError):
    """More judgments failed than the configuration allows."""


class NotFiniteError(RunError):
    """A reward, loss or gradient is NaN or infinite; the policy was not updated with it."""


class LimitError(RunError):
    """A training step went past a limit of `trainer.limits`, whose action is to stop."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or belongs to another run."""


class Interrupted(PermRayError):
    """The run was asked to stop (Ctrl-C or SIGTERM)."""
