"""Errors a user can act on: the command line prints them as one line and exits with status 1."""


class FmcortexError(Exception):
    """Base of all errors caused by input, configuration or storage rather than by a defect.

    The message names the culprit (file, session, field or flag) and says what to do.
    """


class ConfigError(FmcortexError):
    """A configuration file or an override is wrong."""


class DataError(FmcortexError):
    """A recording, a shard or a manifest is missing, malformed or corrupt."""


class StorageError(FmcortexError):
    """A location cannot be read or written."""


class WorkerError(FmcortexError):
    """A worker process died; what it was doing can be done again."""


class CheckpointError(FmcortexError):
    """A checkpoint is missing, incomplete or does not fit the run."""


class Preempted(FmcortexError):
    """A run was told to stop, has saved its state, and goes on when it is called again.

    The command line exits with status 75 (EX_TEMPFAIL): a launcher should queue it again.
    """
