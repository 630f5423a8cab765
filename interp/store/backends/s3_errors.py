"""What an S3 failure means: absent, a condition that did not hold, worth another try, or a refusal with a remedy.

Messages are our own words and the server's error code. The server's text, which could quote a request, is left out,
and so is the endpoint, which could carry credentials.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, Literal

from interp.errors import StoreAccessError

Meaning = Literal["absent", "condition", "transient", "refused", "unknown"]

_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the AWS profile) and AWS_ENDPOINT_URL"
_RIGHTS = (
    "give these credentials s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket and "
    "ListBucketMultipartUploads on this bucket"
)
_REMEDIES = {
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "the session's credentials have expired: log in again, then rerun; what was finished is kept",
    "RequestTimeTooSkewed": "set this machine's clock: it differs too much from the server's",
    "AccessDenied": _RIGHTS,
    "NoSuchBucket": "create the bucket, or correct the name; AWS_ENDPOINT_URL says which server is asked",
    "InvalidBucketName": "correct the bucket's name in the store's URL",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the bucket's region",
    "IllegalLocationConstraintException": "set AWS_DEFAULT_REGION to the bucket's region",
    "QuotaExceeded": "raise the bucket's quota or remove what is no longer needed (`interp artifacts gc`)",
    "InsufficientStorage": "the server's disk is full: free space there; what was finished is kept",
    "XMinioStorageFull": "the server's disk is full: free space there; what was finished is kept",
    "NoCredentialsError": f"no credentials were found: {_CREDENTIALS}",
    "PartialCredentialsError": _CREDENTIALS,
    "ProfileNotFound": "AWS_PROFILE names a profile that this machine does not have",
    "SSLError": "the server's certificate is not trusted: set AWS_CA_BUNDLE to the authority's file",
}
_BUSY_CODES = {
    "SlowDown",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "Throttling",
    "IncompleteBody",
}
_BUSY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PASSING = {
    "ConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "ClientPayloadError",
    "ClientConnectionError",
    "ResponseParserError",
    "IncompleteReadError",
}
"""Names of exception classes (and of their bases) that say nothing about the next try."""
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")


def meaning(error: BaseException) -> Meaning:
    """What to do about an exception that s3fs or botocore raised."""
    code, status = _code_and_status(error)
    if code == "NoSuchBucket":
        return "refused"
    if isinstance(error, FileNotFoundError) or status in (404, 416):  # 416: a range beyond the end
        return "absent"
    if status == 412 or code == "PreconditionFailed":
        return "condition"
    if code in _BUSY_CODES or status in _BUSY_STATUS:
        return "transient"
    if code or status or _class_names(error) & _REMEDIES.keys():
        return "refused"
    if isinstance(error, ConnectionError | TimeoutError) or _class_names(error) & _PASSING:
        return "transient"
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EREMOTEIO, errno.EBUSY):
        return "transient"
    ours = isinstance(error, OSError | ValueError) or type(error).__module__.split(".")[0] in _LIBRARIES
    return "refused" if ours else "unknown"


def refusal(error: BaseException, action: str, url: str) -> StoreAccessError:
    code, status = _code_and_status(error)
    named = _class_names(error) & _REMEDIES.keys()
    if not code and named:
        code = named.pop()
    if code in ("", "403", "Forbidden") and status in (401, 403):
        remedy = f"{_CREDENTIALS}; if they are right, {_RIGHTS}"
    else:
        remedy = _REMEDIES.get(code, _CREDENTIALS if status in (401, 403) else f"{_CREDENTIALS} and the store's URL")
    verb = "refused" if status else "failed"
    return StoreAccessError(f"the S3 store {verb}: cannot {action} ({_brief(error)})", value=url, remedy=remedy)


def unreachable(error: BaseException, action: str, url: str, seconds: float, tries: int) -> StoreAccessError:
    return StoreAccessError(
        f"the S3 store gave no answer, or only errors: cannot {action} ({_brief(error)})",
        value=f"{url}, {tries} tries in {seconds:.0f} s",
        remedy="see that the server of AWS_ENDPOINT_URL is up and reachable, then rerun; what was finished is kept",
    )


def _brief(error: BaseException) -> str:
    """The server's code and status, or the exception's class: never its text."""
    code, status = _code_and_status(error)
    said = [code] if code and not code.isdigit() else []
    return ", ".join([*said, f"HTTP {status}"] if status else said) or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _code_and_status(error: BaseException) -> tuple[str, int]:
    """The error code and the HTTP status of the botocore error that is, or caused, this one."""
    for each in _chain(error):
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return code, status or (int(code) if code.isdigit() else 0)
    return "", 0


def _class_names(error: BaseException) -> set[str]:
    return {cls.__name__ for each in _chain(error) for cls in type(each).__mro__}
