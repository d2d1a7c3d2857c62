"""What the API server answers, as values and as errors of ours."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from devwatch.core.errors import ApiError, Conflict, CredentialsError, Forbidden, Gone, Missing, Refused, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import aiohttp

    from devwatch.core.node import NodePatch
    from devwatch.kube.library import ApiClient


MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer that are read; etcd holds no object of more than 1.5 MiB."""
MAX_MESSAGE = 500
"""Characters of a server's message that are passed on: a 422 can quote the whole Node."""
LONGEST_DELAY = 86_400.0
"""Seconds that a Retry-After counts for at most, however many digits it has; who waits has a lower limit of its own."""
_ANONYMOUS = "system:anonymous"
_UNSHAPELY = (AssertionError, AttributeError, IndexError, KeyError, TypeError)
_SECRET = re.compile(r"(?<=//)\S*@|\{.*\}", re.DOTALL)
"""What an exception can quote of a kubeconfig: the user and password of a URL, and a whole user as a dict."""
_REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIES: Mapping[int, type[Retry]] = {HTTPStatus.CONFLICT: Conflict, HTTPStatus.GONE: Gone}
_RBAC = re.compile(r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
_UNLISTED = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)'.*"
    r"status\.(?:capacity|allocatable)\[(?P<name>[^\]]+)\] is not among the resources that the policy allows"
)
"""What deploy/components/admission-policy says of a name that is not in its list, as the API server passes it on."""


def reason_of(error: BaseException, hide: Callable[[str], str] = lambda text: text) -> str:
    """Return what an exception of a library says, in one line, without secrets, and the same whenever it is the same."""
    if (mark := getattr(error, "problem_mark", None)) is not None:  # the words of PyYAML quote the content
        return f"it is no YAML (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, _UNSHAPELY):
        return f"it is not complete, or of another form ({type(error).__name__})"
    if isinstance(error, TimeoutError) and error.strerror:  # of a file, in our own words
        return ": ".join(filter(None, (error.filename, error.strerror)))
    # aiohttp adds the address of an object in memory to what the system says.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = _SECRET.sub("", hide(" ".join(str(cause).split())))[:MAX_MESSAGE]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def listed_items(listing: Mapping[str, Any], origin: str) -> tuple[list[dict[str, Any]], str]:
    """Return the objects of a list and the version that it shows. Raises `Retry` for anything else than a list."""
    items, metadata = listing.get("items") or [], listing.get("metadata")
    if (
        not isinstance(items, list)
        or not isinstance(metadata, dict)
        or not all(isinstance(item, dict) for item in items)
    ):
        raise Retry(f"the answer of {origin} is no list: something else than the API server may have answered")
    return items, str(metadata.get("resourceVersion") or "0")


def watched_object(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object of a watch event. Raises `Gone` for an expired version, `Retry` for anything else that is none."""
    kind, item = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(item, dict):
        raise Retry("the watch answered with something else than an event")
    if kind == "ERROR":
        message = str(item.get("message"))[:MAX_MESSAGE]
        raise Gone(message) if item.get("code") == HTTPStatus.GONE else Retry(message)
    return item


def origin_of(client: ApiClient) -> str:
    """Return the URL of the server for messages, without what is secret in it."""
    return _SECRET.sub("", str(client.configuration.host))


def redact_token(client: ApiClient, text: str) -> str:
    """Return what a server said without the token that it was shown: some proxies answer with all that they were sent."""
    for key in client.configuration.api_key.values():
        token = key.partition(" ")[2]  # after Bearer or Basic
        text = text.replace(token, "[redacted]") if token else text
    return text


async def read_body(response: aiohttp.ClientResponse, origin: str) -> bytes:
    """Read an answer to its end, or fail: a half one says nothing."""
    parts, size = [], 0
    async for part in response.content.iter_chunked(65536):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise Retry(f"the answer of {origin} is larger than {MAX_ANSWER} bytes")
    return b"".join(parts)


def parse_event(client: ApiClient, line: bytes) -> dict[str, Any]:
    """Return the object of a line of a watch; what an error says goes on to the log, or to a terminal."""
    event = _json(line)
    item = event.get("object")
    if event.get("type") != "ERROR" or not isinstance(item, dict):
        return event
    return {**event, "object": {**item, "message": redact_token(client, str(item.get("message")))}}


def check_response(client: ApiClient, response: aiohttp.ClientResponse, text: bytes) -> dict[str, Any]:
    """Return the object of an answer, or raise what the caller has to do."""
    status, content = response.status, _json(text)
    if status in {HTTPStatus.OK, HTTPStatus.CREATED}:
        return content
    if status in _REDIRECTS and (location := response.headers.get("Location")):
        raise Retry(_redirected(origin_of(client), status, location))
    message = f"{_message(client, content, text)} ({status} from {origin_of(client)})"
    if status == HTTPStatus.UNAUTHORIZED:
        raise CredentialsError(f"the API server does not accept the credentials: {message}")
    if status == HTTPStatus.FORBIDDEN:
        raise _forbidden(message)
    if status == HTTPStatus.NOT_FOUND and content.get("reason") == "NotFound":  # and not by a proxy
        raise Missing(message)
    if status in _REFUSALS:
        raise Refused(message)
    kind = _RETRIES.get(status, Retry)
    raise kind(message, after=_retry_after(response.headers.get("Retry-After", "")))


def _redirected(origin: str, status: int, location: str) -> str:
    """Return where a redirect leads, without what may be secret in it, and what to do."""
    try:
        parts, own = urlsplit(urljoin(origin, location)), urlsplit(origin)
        target = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"[:MAX_MESSAGE]
        where = "another path of its own" if parts[:2] == own[:2] else target
    except ValueError:
        where = "what is not a URL"
    return (
        f"{origin} redirects to {where} ({status}), and devwatch follows no redirect: let the server of the kubeconfig be the "
        "API server itself, not a proxy or a login page"
    )


def _json(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _message(client: ApiClient, content: Mapping[str, object], text: bytes) -> str:
    """Return what a refusal says; it goes on to the log, or to a terminal."""
    message = content.get("message")
    told = f"{message}{_causes(content)}" if isinstance(message, str) else text.decode("utf-8", "replace")
    return " ".join(redact_token(client, told).split())[:MAX_MESSAGE] or "no message"


def _causes(content: Mapping[str, object]) -> str:
    """Return which budgets refuse an eviction, which the message itself does not say (registry/core/pod/storage/eviction.go)."""
    details = content.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    found = [cause for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
    return "".join(f" {cause.get('message')}" for cause in found if cause.get("reason") == "DisruptionBudget")


def parse_date(value: str) -> str:
    """Return the time of a Date header (RFC 9110, 6.6.1) as the API writes times; empty for anything else."""
    try:
        return parsedate_to_datetime(value).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return ""


def _retry_after(value: str) -> float | None:
    return min(float(value), LONGEST_DELAY) if value.isascii() and value.isdigit() else None


def _forbidden(message: str) -> ApiError:
    """Tell a missing right, which no other content helps, from a policy that dislikes this content."""
    if (refused := _RBAC.search(message)) is not None:
        if refused["user"] == _ANONYMOUS:  # whom nobody should grant anything
            return Forbidden(
                message, hint="the credentials name nobody: the kubeconfig needs a token or a client certificate"
            )
        return Forbidden(message, hint=_grant(refused["user"], refused["verb"], refused["resource"]))
    if "is not allowed to modify node" in message:
        return Forbidden(message, hint="a kubelet's credential may change its own Node only: check --node-name")
    return Refused(message)


def list_hint(message: str, patch: NodePatch) -> str:
    """Return which list of a policy to change, empty where the refusal of this patch is not about a list."""
    refused = _UNLISTED.search(message)
    if refused is None:
        return ""
    place = f"spec.variables[0] of ValidatingAdmissionPolicy {refused['policy']} (admissionPolicy.allowed in the chart's values)"
    if refused["name"] in patch.counts and patch.counts[refused["name"]] is None:
        return f"a removal needs the name as well: keep {refused['name']} in {place} until it has been removed from the Node"
    return f"add {refused['name']} to {place}"


def _grant(user: str, verb: str, resource: str) -> str:
    """Return the commands that grant a right to the user of an RBAC message."""
    parts = user.split(":")
    account = parts[:2] == ["system", "serviceaccount"] and len(parts) == 4  # noqa: PLR2004 - system:serviceaccount:NAMESPACE:NAME
    subject = f"--serviceaccount={':'.join(parts[2:])}" if account else f"--user={user}"
    role = f"devwatch-{verb}-{resource.replace('/', '-')}"
    # Users share the role, so it may exist; each has a binding of its own, whose name holds no / and no % (RBAC, ValidatePathSegmentName).
    binding = f"{role}:{re.sub('[/%]', '-', user)}"
    return (
        f"kubectl create clusterrole {shlex.quote(role)} --verb={shlex.quote(verb)} --resource={shlex.quote(resource)}; "
        f"kubectl create clusterrolebinding {shlex.quote(binding)} --clusterrole={shlex.quote(role)} {shlex.quote(subject)}"
    )
