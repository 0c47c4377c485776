"""What is tried again, how often, after which waits, and what is said in the end."""

from __future__ import annotations

import asyncio
import errno
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import fsspec
import pytest
from aiohttp.http_exceptions import ContentLengthError
from botocore import exceptions as botocore
from s3fs.errors import translate_boto_error

from fmcortex.errors import StorageError
from fmcortex.retry import (
    RetryPolicy,
    default_policy,
    describe,
    request,
    retrying,
    status,
    transient,
)

URL = "s3://bucket/x"
ASKED: Any = SimpleNamespace(real_url="http://x")


class Clock:
    """Waits that take no time."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)


class Failing:
    """A request that fails in the given ways, one after another, before it succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> bytes:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return b"content"


def answered(code: str, number: int, translated: bool = True) -> Exception:
    """What s3fs, or botocore, makes of an answer of S3."""
    error = botocore.ClientError(
        {
            "Error": {"Code": code, "Message": f"about {code}"},
            "ResponseMetadata": {"HTTPStatusCode": number},
        },
        "GetObject",
    )
    return translate_boto_error(error) if translated else error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = {
    "reset": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "unreachable": OSError(errno.EHOSTUNREACH, "No route to host"),
    "timeout": TimeoutError(),
    "fsspec timeout": fsspec.exceptions.FSTimeoutError(),
    "async timeout": TimeoutError(),
    "endpoint": botocore.EndpointConnectionError(endpoint_url="http://x"),
    "read timeout": botocore.ReadTimeoutError(endpoint_url="http://x"),
    "connect timeout": botocore.ConnectTimeoutError(endpoint_url="http://x"),
    "closed": botocore.ConnectionClosedError(endpoint_url="http://x"),
    "incomplete": botocore.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    "stream": botocore.ResponseStreamingError(error="x"),
    "checksum": botocore.ChecksumError(
        checksum_type="crc32", expected_checksum="a", actual_checksum="b"
    ),
    # aiohttp gives a body that ended early the code 400, which the server never said.
    "body": caused(aiohttp.ClientPayloadError("x"), ContentLengthError("few")),
    "disconnected": aiohttp.ServerDisconnectedError(),
    "as if missing": caused(FileNotFoundError("x"), aiohttp.ServerDisconnectedError()),
    "web server": aiohttp.ClientResponseError(ASKED, (), status=502),
    "500": answered("InternalError", 500),
    "503": answered("SlowDown", 503),
    "503, head": answered("503", 503),
    "429": answered("TooManyRequests", 429),
    "untranslated": answered("SlowDown", 503, translated=False),
    "damaged upload": answered("XAmzContentSHA256Mismatch", 400),
    "bad digest": answered("BadDigest", 400),
    "request timeout": answered("RequestTimeout", 400),
}

LASTING = {
    "missing": FileNotFoundError(errno.ENOENT, "No such file"),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "folder": IsADirectoryError(errno.EISDIR, "Is a directory"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "404": answered("NoSuchKey", 404),
    "bucket": answered("NoSuchBucket", 404),
    "403": answered("AccessDenied", 403),
    "403, head": answered("403", 403),
    "secret": answered("SignatureDoesNotMatch", 403),
    "key": answered("InvalidAccessKeyId", 403),
    "501": answered("NotImplemented", 501),
    "400": answered("InvalidArgument", 400),
    "no credentials": botocore.NoCredentialsError(),
    "certificate": botocore.SSLError(endpoint_url="https://x", error="CERTIFICATE_VERIFY_FAILED"),
    "web server": aiohttp.ClientResponseError(ASKED, (), status=401),
    "as if missing": caused(
        FileNotFoundError("x"), aiohttp.ClientResponseError(ASKED, (), status=403)
    ),
    "missing twice": caused(FileNotFoundError("x"), FileNotFoundError("y")),
}


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(error: BaseException) -> None:
    assert transient(error)
    call, clock = Failing(error, error), Clock()
    assert retrying(call, URL, "read", sleep=clock, chance=lambda: 0.0) == b"content"
    assert (call.calls, clock.waits) == (3, [0.25, 0.5])


@pytest.mark.parametrize("error", LASTING.values(), ids=LASTING)
def test_what_lasts_is_not(error: BaseException) -> None:
    assert not transient(error)
    call, clock = Failing(error), Clock()
    with pytest.raises(StorageError) as caught:
        retrying(call, URL, "write", sleep=clock)
    assert str(caught.value).startswith(f"{URL}: cannot write: ")
    assert "tried" not in str(caught.value)
    assert (call.calls, clock.waits) == (1, [])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LASTING["missing"], "no such file or folder"),
        (LASTING["404"], "no such file or folder"),
        (LASTING["missing twice"], "no such file or folder"),
        (LASTING["as if missing"], "403, message='', url='http://x'"),
        (PASSING["as if missing"], "Server disconnected"),
    ],
)
def test_missing_is_said_of_what_is_missing_only(error: BaseException, told: str) -> None:
    assert describe(error) == told


def test_the_last_failure_is_told_in_one_line() -> None:
    call = Failing(TimeoutError(), answered("InternalError", 500), OSError(104, "Reset\n by peer"))
    clock = Clock()
    with pytest.raises(StorageError) as caught:
        retrying(call, URL, "read", RetryPolicy(attempts=3), sleep=clock)
    assert str(caught.value) == f"{URL}: cannot read: Reset by peer (tried 3 times)"
    assert len(clock.waits) == 2


def test_a_defect_is_no_failure_of_storage() -> None:
    call = Failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        retrying(call, URL, "read")
    assert call.calls == 1


def test_waits() -> None:
    policy = RetryPolicy()
    assert [policy.wait(n, 0.0) for n in range(1, 8)] == [0.25, 0.5, 1, 2, 4, 8, 8]
    assert [policy.wait(n, 1.0) for n in range(1, 4)] == [0.125, 0.25, 0.5]
    assert policy.seconds(0) == 60
    assert policy.seconds(10**9) == 1060


def test_the_environment_sets_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMCORTEX_STORAGE_ATTEMPTS", raising=False)
    monkeypatch.delenv("FMCORTEX_STORAGE_DEADLINE", raising=False)
    assert default_policy() == RetryPolicy()
    monkeypatch.setenv("FMCORTEX_STORAGE_ATTEMPTS", "2")
    monkeypatch.setenv("FMCORTEX_STORAGE_DEADLINE", "1.5")
    assert default_policy() == RetryPolicy(attempts=2, deadline=1.5)
    for wrong in ("0", "-1", "x", "nan", "inf"):
        monkeypatch.setenv("FMCORTEX_STORAGE_DEADLINE", wrong)
        with pytest.raises(StorageError, match=f"FMCORTEX_STORAGE_DEADLINE={wrong}: set it to a"):
            default_policy()


def test_status() -> None:
    assert status(answered("SlowDown", 503)) == 503
    assert status(answered("InvalidRange", 416, translated=False)) == 416
    assert status(PASSING["body"]) is None
    assert status(OSError(5, "x")) is None
    kind = type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 429})
    assert (status(kind()), transient(kind())) == (429, True)


class Slow(fsspec.asyn.AsyncFileSystem):
    """Answers after a while, and knows whether it was let."""

    cachable = False
    retries = 5

    async def set_session(self) -> None:
        self.sessions = 1

    async def _cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        self.tries = self.__dict__.setdefault("seen", [])
        self.tries.append(("started", self.retries))
        try:
            await asyncio.sleep(float(path))
        except asyncio.CancelledError:
            self.tries.append(("cancelled", self.retries))
            raise
        return b"content"


def test_a_slow_request_is_cancelled() -> None:
    fs = Slow()
    fs.seen = []  # shared with what stands in for it
    assert request(fs, 5, "cat_file", "0") == b"content"
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^not done after 0\.05 s$"):
        request(fs, 0.05, "cat_file", "30")
    assert time.monotonic() - started < 20  # the request sleeps for 30
    # s3fs' own loop was out of the way, on this call only.
    assert fs.seen == [("started", 1), ("started", 1), ("cancelled", 1)]
    assert fs.retries == 5


def test_other_file_systems_are_called_as_they_are() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/x", b"abc")
    assert request(fs, 0.0, "cat_file", "/x", start=1, end=2) == b"b"
    fs.rm("/x")


@pytest.mark.parametrize(
    "error",
    [
        type("HttpError", (Exception,), {"__module__": "gcsfs.retry", "code": 401})("expired"),
        type(
            "ClientAuthenticationError",
            (Exception,),
            {"__module__": "azure.core.exceptions", "error_code": "AuthenticationFailed"},
        )("refused"),
    ],
)
def test_credentials_are_renewed_once_of_other_stores(error: Exception) -> None:
    renewed: list[int] = []

    def call() -> bytes:
        if not renewed:
            raise error
        return b"content"

    assert retrying(call, URL, "read", renew=lambda: renewed.append(1)) == b"content"
    assert renewed == [1]
    calls: list[int] = []
    with pytest.raises(StorageError, match=r"cannot read: (expired|refused)$"):
        retrying(lambda: _raised(error), URL, "read", renew=lambda: calls.append(1))
    assert len(calls) == 2  # what is still refused is not tried for ever


def _raised(error: Exception) -> bytes:
    raise error
