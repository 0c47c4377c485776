"""Failed requests to remote stores are made again, after a while, a bounded number of times."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from fmcortex.errors import StorageError

T = TypeVar("T")

#: Packages below fsspec's remote file systems: they raise errors of their own.
CLIENTS = (
    *("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "http", "httpx"),
    *("requests", "urllib3"),
)

#: Seconds that taking back a cancelled upload may take.
ABORTING = 5.0

# How the retries combine. s3fs makes a failed request again up to 5 times (lost connections,
# timeouts, SlowDown), and each of these botocore makes up to 5 times (lost connections, 429, 500,
# 502, 503, 504; random waits of up to 1, 2, 4 and 8 s, 7.5 s on average); reading an object wraps
# s3fs' loop once more around the body. With the 15 s that a silent server may be silent, 125 tries
# take half an hour. So s3fs' loops are left out here (`_once`), and one attempt is botocore's 5
# tries and ends after its `deadline` whatever happens: 5 minutes and 8 s of waits for all attempts
# at most, by default. What fails fast ends sooner: a server that is down or overloaded after 5
# attempts of 7.5 s and the waits, about 45 s.


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how long and at what intervals a request is tried.

    Args:
        attempts: tries, the first included.
        first_wait: seconds before the second try; it doubles from try to try.
        longest_wait: seconds that a wait grows to.
        deadline: seconds after which a try is cancelled, on file systems that can cancel.
        slowest: bytes a second that a transfer of known size may take on top of `deadline`, so
            that it does not limit the size of files.
    """

    attempts: int = 5
    first_wait: float = 0.25
    longest_wait: float = 8.0
    deadline: float = 60.0
    slowest: float = 1e6

    def seconds(self, size: int) -> float:
        """Seconds that a try to transfer `size` bytes may take."""
        return self.deadline + size / self.slowest

    def wait(self, failures: int, chance: float) -> float:
        """Seconds to wait after that many failures; `chance` in [0, 1) takes up to half of them.

        Ranks that lost the same server at once thereby do not come back at once.
        """
        full = min(self.longest_wait, self.first_wait * 2.0 ** (failures - 1))
        return full * (1 - chance / 2)


def default_policy() -> RetryPolicy:
    """The policy with what FMCORTEX_STORAGE_ATTEMPTS and FMCORTEX_STORAGE_DEADLINE (s) set.

    Raises:
        StorageError: one of them is not a positive number.
    """
    policy = RetryPolicy()
    if text := os.environ.get("FMCORTEX_STORAGE_ATTEMPTS"):
        policy = replace(policy, attempts=int(_positive("FMCORTEX_STORAGE_ATTEMPTS", text, int)))
    if text := os.environ.get("FMCORTEX_STORAGE_DEADLINE"):
        policy = replace(policy, deadline=_positive("FMCORTEX_STORAGE_DEADLINE", text, float))
    return policy


def _positive(name: str, text: str, kind: Callable[[str], float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise StorageError(f"{name}={text}: set it to a positive number, or unset it")
    return value


def retrying(
    call: Callable[[], T],
    url: str,
    doing: str,
    policy: RetryPolicy | None = None,
    *,
    renew: Callable[[], object] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> T:
    """What `call` returns, once it succeeds; it must be safe to call again.

    Args:
        call: makes the request.
        url: the location, for the message.
        doing: the verb of the message: "read", "write", "remove".
        policy: the default one if None.
        renew: reads the credentials again, where they may have expired; `call` then uses them.
        sleep: waits for a number of seconds.
        chance: a random number in [0, 1).

    Raises:
        StorageError: in one line, the failure that trying again cannot help, or the last one.
        Exception: what `call` raised, if it does not come from the storage.
    """
    policy = policy or default_policy()
    failures = 0
    renewed = False
    while True:
        try:
            return call()
        except Exception as error:
            if renew is not None and refused(error):
                renew()
                if not renewed:
                    renewed = True
                    continue
            failures += 1
            # Whoever renews credentials may be about to write them.
            if (transient(error) or expired(error)) and failures < policy.attempts:
                sleep(policy.wait(failures, chance()))
                continue
            why = describe(error)
            if why is None:
                raise
            tried = f" (tried {failures} times)" if failures > 1 else ""
            raise StorageError(f"{url}: cannot {doing}: {why}{tried}") from error


def request(
    fs: fsspec.AbstractFileSystem, seconds: float, method: str, *arguments: Any, **options: Any
) -> Any:
    """The result of a method of a file system, cancelled if it takes longer than `seconds`.

    botocore's own timeouts count the seconds without a byte, so a server that sends one every few
    seconds would hold a request for ever. File systems that are not asynchronous cannot cancel a
    request: they get no deadline.

    Raises:
        TimeoutError: it took longer.
    """
    if not fs.async_impl:
        return getattr(fs, method)(*arguments, **options)
    coroutine = _once(fs, f"_{method}", *arguments, **options)
    started = time.monotonic()
    try:
        return sync(fs.loop, asyncio.wait_for, coroutine, seconds)
    except TimeoutError as error:
        if str(error) or time.monotonic() - started < seconds:
            raise  # a timeout of the client's own
        raise TimeoutError(f"not done after {seconds:.3g} s") from error


async def _once(fs: fsspec.AbstractFileSystem, method: str, *arguments: Any, **options: Any) -> Any:
    """A method of an asynchronous file system, without retries of s3fs' own.

    Their number is read from the file system object, which others use as well; so this runs on
    another one with the same state: one client, one cache of listings.
    """
    uploads: list[dict[str, Any]] = []
    if hasattr(fs, "set_session") and isinstance(getattr(fs, "retries", None), int):
        await fs.set_session()
        view = object.__new__(type(fs))
        view.__dict__.update(fs.__dict__)
        view.retries = 1
        if hasattr(view, "_call_s3"):
            view._call_s3 = _noting(view._call_s3, uploads)
        fs = view
    try:
        return await getattr(fs, method)(*arguments, **options)
    except asyncio.CancelledError:
        # s3fs takes back the parts of an upload that fails, but not of one that is cancelled.
        for upload in uploads:
            abort = fs._call_s3("abort_multipart_upload", **upload)
            with suppress(Exception):
                await asyncio.wait_for(abort, ABORTING)
        raise


def _noting(call: Callable[..., Awaitable[Any]], uploads: list[dict[str, Any]]) -> Any:
    """s3fs' `_call_s3`, which adds the uploads in parts that it begins to `uploads`."""

    async def noting(name: str, *arguments: Any, **options: Any) -> Any:
        answer = await call(name, *arguments, **options)
        if name == "create_multipart_upload":
            place = {key: options[key] for key in ("Bucket", "Key")}
            uploads.append({**place, "UploadId": answer["UploadId"]})
        return answer

    return noting


def describe(error: BaseException) -> str | None:
    """The reason of a failure of storage in one line; None if it is no failure of storage."""
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        # fsspec says so of a file over HTTP whatever happened when it was asked for.
        if cause is not None and (transient(cause) or status(cause) not in (None, 404, 410)):
            return describe(cause)
        return "no such file or folder"
    if isinstance(error, OSError):
        return _line(error.strerror or str(error)) or type(error).__name__
    if type(error).__module__.partition(".")[0] in CLIENTS:
        return _line(str(error)) or type(error).__name__
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


#: Errors of clients that come and go, by name: the packages need not be installed.
PASSING = {
    "ChecksumError",  # arrived damaged
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "EndpointConnectionError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ResponseParserError",
    "ResponseStreamingError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
}

#: Answers of servers that come and go whatever their status: overload, or an upload that arrived
#: incomplete or damaged.
PASSING_CODES = {
    "BadDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}

#: Answers of servers to credentials that have expired.
EXPIRED = {
    "ExpiredAuthenticationToken",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
}

#: Answers to credentials that others may have replaced by now. That to a question without a body
#: (HEAD) is but a number.
REFUSED = {"400", "403", "AuthenticationFailed", "InvalidAccessKeyId", "InvalidToken"}

PASSING_ERRNO = {
    getattr(errno, name)
    for name in (
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH"),
        *("ENETUNREACH", "ENETRESET", "ENETDOWN", "EAGAIN"),
    )
}

LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if (answer := status(error)) is not None:  # says more than what the client made of it
        passing = answer in (408, 429) or (answer >= 500 and answer != 501)
        return passing or any(_code(one) in PASSING_CODES for one in _causes(error))
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return transient(error.__cause__)
    if isinstance(error, (*LASTING, PermissionError)):
        return False
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    return any(
        isinstance(one, (TimeoutError, asyncio.TimeoutError, ConnectionError))
        or (isinstance(one, OSError) and one.errno in PASSING_ERRNO)
        or _passing(one)
        for one in _causes(error)
    )


def status(error: BaseException) -> int | None:
    """The status of the HTTP answer that an error was made of, if there was one."""
    for one in _causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            # gcsfs' errors have a `code`; that of aiohttp's broken bodies is not the server's.
            own = "code" if type(one).__module__.startswith("gcsfs") else "status"
            found = next((v for n in (own, "status_code") if (v := getattr(one, n, None))), None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def expired(error: BaseException) -> bool:
    """Whether the server says that the credentials have expired."""
    return any(_code(one) in EXPIRED for one in _causes(error))


def refused(error: BaseException) -> bool:
    """Whether other credentials might have been accepted."""
    return (
        expired(error)
        or status(error) == 401
        or any(_code(one) in REFUSED for one in _causes(error))
    )


def _code(error: BaseException) -> str:
    """The name that S3 and Azure give to what went wrong; empty if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "error_code", None) or "")


def _passing(error: BaseException) -> bool:
    return any(
        kind.__name__ in PASSING and kind.__module__.partition(".")[0] in CLIENTS
        for kind in type(error).__mro__
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
