"""The names of devwatch at the kubelet and the API server, and the names of extended resources, validated as the Pod API does."""

from __future__ import annotations

import re

DRIVER = "devwatch.io"
"""The name of the DRA driver, in slices, device classes and claims, and at the kubelet."""
UNPLUGGED = f"{DRIVER}/unplugged"
"""The key of the taint of a lost device."""
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def resource_name_fault(name: str) -> str:
    """Return the first rule of the Pod API that the name of an extended resource violates, empty for a valid name.

    The rules are those of `IsExtendedResourceName` (pkg/apis/core/v1/helper): the name must also be valid with
    `requests.` before it, as quotas spell it, which leaves a prefix 244 of the 253 characters of a DNS subdomain.
    """
    prefix, slash, short = name.partition("/")
    subdomain = len(prefix) <= 244 and _SUBDOMAIN.fullmatch(prefix)  # noqa: PLR2004  # the docstring counts them
    qualified = len(short) <= 63 and _QUALIFIED.fullmatch(short)  # noqa: PLR2004  # as the message says
    rules = (
        (slash, "PREFIX/NAME is wanted, such as example.com/zigbee"),
        ("kubernetes.io/" not in name, "kubernetes.io/ must not be in it"),
        (not name.startswith("requests."), "requests. must not be at its beginning"),
        (subdomain, "before the / at most 244 lower-case letters, digits, - and ., as in a DNS name"),
        (qualified, "after the / at most 63 letters, digits, -, _ and ., with a letter or digit at both ends"),
    )
    return next((wanted for kept, wanted in rules if not kept), "")
