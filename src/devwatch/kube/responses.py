"""Turn responses of the API server into values and into the errors of `core/errors`."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from devwatch.core.errors import (
    ApiError,
    Busy,
    Conflict,
    CredentialsError,
    Forbidden,
    Gone,
    Missing,
    Refused,
    Retry,
    Unserved,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import aiohttp

    from devwatch.core.node import NodePatch
    from devwatch.kube.library import ApiClient


MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of the largest response that is read; etcd stores no object of more than 1.5 MiB."""
MAX_MESSAGE = 500
"""Characters of a server's message that are passed on: a 422 can quote the whole Node."""
LONGEST_DELAY = 86_400.0
"""Seconds of the longest Retry-After that is passed on, against absurd values; the callers have lower limits of their own."""
_ANONYMOUS = "system:anonymous"
_MALFORMED = (AssertionError, AttributeError, IndexError, KeyError, TypeError)
"""Errors that reading a value of another structure raises."""
_SECRET = re.compile(r"(?<=//)\S*@|\{.*\}", re.DOTALL)
"""The secrets of a kubeconfig that an exception can quote: user and password in a URL, and a whole user as a dict."""
_REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIES: Mapping[int, type[Retry]] = {
    HTTPStatus.NOT_FOUND: Unserved,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.TOO_MANY_REQUESTS: Busy,
}
_RBAC = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
_UNLISTED = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*"
    r"status\.(?:capacity|allocatable)\[(?P<name>[^\]]+)\] is not among the resources that the policy allows"
)
"""The message of deploy/components/admission-policy for a name that is not in its list, as the API server passes it on."""


def reason_of(error: BaseException, hide: Callable[[str], str] = lambda text: text) -> str:
    """Describe an exception of a library in one line, without secrets, and identically each time, since repetitions are filtered.

    The cases, in this order:

    - YAML errors: only the position, since PyYAML quotes the content, which may be a secret.
    - A value of another structure: only the type, since the message of a KeyError or TypeError helps no user.
    - The timeout of a file: our own message (`config/files`), which is complete.
    - An error of the system that a library wraps: the cause alone, since aiohttp adds the address of an object in memory, which
      differs each time.
    - Everything else: type and message, without `_SECRET` and what the caller hides, cut to `MAX_MESSAGE`.
    """
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return f"invalid YAML (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, _MALFORMED):
        return f"incomplete or malformed ({type(error).__name__})"
    if isinstance(error, TimeoutError) and error.strerror:
        return ": ".join(filter(None, (error.filename, error.strerror)))
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = _SECRET.sub("", hide(" ".join(str(cause).split())))[:MAX_MESSAGE]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def listed_items(listing: Mapping[str, Any], origin: str) -> tuple[list[dict[str, Any]], str]:
    """Return the objects of a list and its resourceVersion. Raises `Retry` for a response that is not a list."""
    items, metadata = listing.get("items") or [], listing.get("metadata")
    if (
        not isinstance(items, list)
        or not isinstance(metadata, dict)
        or not all(isinstance(item, dict) for item in items)
    ):
        raise Retry(f"unexpected response from {origin}: not a list (does a proxy answer?)")
    return items, str(metadata.get("resourceVersion") or "0")


def watched_object(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of a watch event. Raises `Gone` for an expired resourceVersion, `Retry` for any other error or malformed event."""
    kind, item = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(item, dict):
        raise Retry("unexpected response to the watch: not an event")
    if kind == "ERROR":
        message = str(item.get("message"))[:MAX_MESSAGE]
        raise Gone(message) if item.get("code") == HTTPStatus.GONE else Retry(message)
    return item


def origin_of(client: ApiClient) -> str:
    """Return the URL of the server for messages, without user and password."""
    return _SECRET.sub("", str(client.configuration.host))


def redact_token(client: ApiClient, text: str) -> str:
    """Remove our token from a server's text: some proxies respond with the whole request."""
    for key in client.configuration.api_key.values():
        token = key.partition(" ")[2]  # after Bearer or Basic
        text = text.replace(token, "[redacted]") if token else text
    return text


async def read_body(response: aiohttp.ClientResponse, origin: str) -> bytes:
    """Read a response to its end. Raises `Retry` for one of more than `MAX_ANSWER` bytes."""
    parts, size = [], 0
    async for part in response.content.iter_chunked(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise Retry(f"the response of {origin} is larger than {MAX_ANSWER} bytes")
    return b"".join(parts)


def parse_event(client: ApiClient, line: bytes) -> dict[str, Any]:
    """Return the event in a line of a watch, with our token removed from an error's message, which may be logged."""
    event = _json_object(line)
    item = event.get("object")
    if event.get("type") != "ERROR" or not isinstance(item, dict):
        return event
    return {**event, "object": {**item, "message": redact_token(client, str(item.get("message")))}}


def check_response(client: ApiClient, response: aiohttp.ClientResponse, text: bytes) -> dict[str, Any]:
    """Return the object of a response, or raise the error that tells the caller what to do.

    The cases, in this order, each decided by the status code before the content, which a proxy may have written:

    - 200 and 201: the content. A body that is not a JSON object becomes an empty one, which the callers refuse.
    - 3xx with a Location: `Retry`. aiohttp must not follow it: token and body are for the configured server alone.
    - 401: `CredentialsError`, so that the credentials are read again.
    - 403: `Forbidden` or `Refused`, see `_forbidden`.
    - 404: `Missing`, but only with the API's own reason. The 404 of a proxy or of a wrong path does not mean that a Node is missing:
      `Unserved`, which is repeated.
    - 400, 413 and 422: `Refused`, since the same content would be refused again.
    - 409, 410 and 429: `Conflict`, `Gone` and `Busy`; the rest, 5xx among them: `Retry`. Each has the server's Retry-After.
    """
    status, content = response.status, _json_object(text)
    if status in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return content
    if status in _REDIRECTS and (location := response.headers.get("Location")):
        raise Retry(_redirect_message(origin_of(client), status, location))
    message = f"{_message(client, content, text)} ({status} from {origin_of(client)})"
    if status == HTTPStatus.UNAUTHORIZED:
        raise CredentialsError(f"the API server does not accept the credentials: {message}")
    if status == HTTPStatus.FORBIDDEN:
        raise _forbidden(message)
    if status == HTTPStatus.NOT_FOUND and content.get("reason") == "NotFound":
        raise Missing(message)
    if status in _REFUSALS:
        raise Refused(message)
    kind = _RETRIES.get(status, Retry)
    raise kind(message, after=_retry_after(response.headers.get("Retry-After", "")))


def _redirect_message(origin: str, status: int, location: str) -> str:
    """Return where a redirect leads, as scheme and host alone since the rest may hold secrets, and the cure."""
    try:
        parts, own = urlsplit(urljoin(origin, location)), urlsplit(origin)
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:MAX_MESSAGE]
        where = "another path of its own" if parts[:2] == own[:2] else target
    except ValueError:
        where = "an invalid URL"
    return (
        f"{origin} redirects to {where} ({status}), and devwatch does not follow redirects: let the server of the kubeconfig be the "
        "API server itself, not a proxy or a login page"
    )


def _json_object(text: bytes) -> dict[str, Any]:
    """Return a JSON object, empty for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _message(client: ApiClient, content: Mapping[str, object], text: bytes) -> str:
    """Return the message of an error response, in one line without our token: that of the Status, else the body as text."""
    message = content.get("message")
    full = f"{message}{_budget_causes(content)}" if isinstance(message, str) else text.decode("utf-8", "replace")
    return " ".join(redact_token(client, full).split())[:MAX_MESSAGE] or "no message"


def _budget_causes(content: Mapping[str, object]) -> str:
    """Return the names of the budgets that refuse an eviction: the message lacks them (registry/core/pod/storage/eviction.go)."""
    details = content.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    found = [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
    return "".join(f" {cause.get('message')}" for cause in found if cause.get("reason") == "DisruptionBudget")


def parse_date(value: str) -> str:
    """Return the time of a Date header (RFC 9110, 6.6.1) in the format of the API, empty for an invalid one."""
    try:
        return parsedate_to_datetime(value).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return ""


def _retry_after(value: str) -> float | None:
    return min(float(value), LONGEST_DELAY) if value.isascii() and value.isdigit() else None


def _forbidden(message: str) -> ApiError:
    """Distinguish the causes of a 403, which the API server gives only in its message.

    The cases, in this order:

    - RBAC, anonymous user: `Forbidden`. The kubeconfig has no credentials. A grant would be for every client, so none is suggested.
    - RBAC, any other user: `Forbidden`, with the commands that grant the missing permission.
    - NodeRestriction: `Forbidden`. A kubelet's credentials may change their own Node only, so the name of the Node is wrong.
    - Everything else is an admission policy, which refuses this content: `Refused`, since another content may pass.
    """
    if (denied := _RBAC.search(message)) is not None:
        if denied["user"] == _ANONYMOUS:
            return Forbidden(
                message, hint="the request was anonymous: the kubeconfig needs a token or a client certificate"
            )
        return Forbidden(message, hint=_grant_commands(denied["user"], denied["verb"], denied["resource"]))
    if "is not allowed to modify node" in message:
        return Forbidden(message, hint="a kubelet's credential may change its own Node only: check --node-name")
    return Refused(message)


def list_hint(message: str, patch: NodePatch) -> str:
    """Return which list of an admission policy to change, empty where a list is not the cause of the refusal."""
    refused = _UNLISTED.search(message)
    if refused is None:
        return ""
    place = f"spec.variables[0] of ValidatingAdmissionPolicy {refused['policy']} (admissionPolicy.allowed in the chart's values)"
    if refused["name"] in patch.counts and patch.counts[refused["name"]] is None:
        return f"a removal needs the name as well: keep {refused['name']} in {place} until it has been removed from the Node"
    return f"add {refused['name']} to {place}"


def _grant_commands(user: str, verb: str, resource: str) -> str:
    """Return the commands that grant a permission to the user of an RBAC message."""
    parts = user.split(":")
    account = parts[:2] == ["system", "serviceaccount"] and len(parts) == 4  # noqa: PLR2004 - system:serviceaccount:NAMESPACE:NAME
    subject = f"--serviceaccount={':'.join(parts[2:])}" if account else f"--user={user}"
    role = f"devwatch-{verb}-{resource.replace('/', '-')}"
    # Users share the role, so it may exist. Each has its own binding, whose name must not contain / or % (RBAC, ValidatePathSegmentName).
    binding = f"{role}:{re.sub('[/%]', '-', user)}"
    return (
        f"kubectl create clusterrole {shlex.quote(role)} --verb={shlex.quote(verb)} --resource={shlex.quote(resource)}; "
        f"kubectl create clusterrolebinding {shlex.quote(binding)} --clusterrole={shlex.quote(role)} {shlex.quote(subject)}"
    )
