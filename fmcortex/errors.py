"""Errors a user can act on: the command line prints them as one line and exits with status 1."""

from __future__ import annotations

import re

#: Parameters of signed URLs (S3, Google, Azure) and of tokens in general.
_SECRET = re.compile(
    r"([?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|GoogleAccessId"
    r"|Signature|sig|(?:[a-z]+[_-])?token|api[_-]?key|password)=)[^&#\s\"',;:]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """`text` with what the URLs in it let only their user know taken out.

    That is user and password before the host, and the values of parameters that sign a URL:
    messages and reports are there to be passed on.
    """
    return _SECRET.sub(r"\1...", re.sub(r"://[^/@\s\"']+@", "://", text))


def has_secret(text: str) -> bool:
    """Whether a URL in `text` has a password, or a parameter that signs it."""
    return bool(_SECRET.search(text) or re.search(r"://[^/@\s\"':]*:[^/@\s\"']+@", text))


class FmcortexError(Exception):
    """Base of all errors caused by input, configuration or storage rather than by a defect.

    The message names the culprit (file, session, field or flag) and says what to do; secrets of
    the URLs that it names are left out.
    """

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class ConfigError(FmcortexError):
    """A configuration file or an override is wrong."""


class DataError(FmcortexError):
    """A recording, a shard or a manifest is missing, malformed or corrupt."""


class StorageError(FmcortexError):
    """A location cannot be read or written."""


class Locked(StorageError):
    """Another process is at work on a location."""


class WorkerError(FmcortexError):
    """A worker process died; what it was doing can be done again."""


class CheckpointError(FmcortexError):
    """A checkpoint is missing, incomplete or does not fit the run."""


class Preempted(FmcortexError):
    """A run was told to stop, has saved its state, and goes on when it is called again.

    The command line exits with status 75 (EX_TEMPFAIL): a launcher should queue it again.
    """


class Interrupted(Preempted):
    """The same by Ctrl-C: the command line exits with status 130, and nobody queues it again."""


class Adjusted(UserWarning):
    """Another value is used than was asked for; the command line prints it as one line."""
