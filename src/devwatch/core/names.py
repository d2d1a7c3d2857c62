"""The names of devwatch at the kubelet and the API server, of extended resources, as the Pod API validates them, and of subsystems."""

from __future__ import annotations

import re
from types import MappingProxyType

DRIVER = "devwatch.io"
"""The name of the DRA driver, in slices, device classes and claims, and at the kubelet."""
UNPLUGGED = f"{DRIVER}/unplugged"
"""The key of the taint of a lost device."""
MAX_PREFIX, MAX_SHORT = 244, 63
"""Characters before and after the slash of the name of an extended resource."""
KEPT_DOMAIN, KEPT_PREFIX = "kubernetes.io/", "requests."
"""What must not be in such a name, and not at its beginning: Kubernetes keeps them for itself."""
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def resource_name_fault(name: str) -> str:
    """Return the first rule of the Pod API that the name of an extended resource violates, empty for a valid name.

    The rules are those of `IsExtendedResourceName` (pkg/apis/core/v1/helper): the name must also be valid with
    `requests.` before it, as quotas spell it, which leaves a prefix 244 of the 253 characters of a DNS subdomain.
    """
    prefix, slash, short = name.partition("/")
    subdomain = len(prefix) <= MAX_PREFIX and SUBDOMAIN.fullmatch(prefix)
    qualified = len(short) <= MAX_SHORT and QUALIFIED.fullmatch(short)
    rules = (
        (slash, "PREFIX/NAME is wanted, such as example.com/zigbee"),
        (KEPT_DOMAIN not in name, f"{KEPT_DOMAIN} must not be in it"),
        (not name.startswith(KEPT_PREFIX), f"{KEPT_PREFIX} must not be at its beginning"),
        (subdomain, f"before the / at most {MAX_PREFIX} lower-case letters, digits, - and ., as in a DNS name"),
        (
            qualified,
            f"after the / at most {MAX_SHORT} letters, digits, -, _ and ., with a letter or digit at both ends",
        ),
    )
    return next((wanted for kept, wanted in rules if not kept), "")


SUBSYSTEM = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
WITHOUT_DEVNODE = MappingProxyType(
    {
        "block": "a block device has no character devnode, and Pods get disks as volumes",
        "net": "a network interface has no devnode, and Pods get interfaces from network plugins",
        "usb_device": "the whole USB device is called usb",
    }
)
"""The subsystems that cannot be scanned, and why."""


def subsystem_fault(name: str) -> str:
    """Return why a subsystem cannot be scanned, empty where it can. The driver that registers it may be loaded later."""
    allowed = "tty, usb, hidraw, video4linux or another udev subsystem whose devices have a character devnode"
    if why := WITHOUT_DEVNODE.get(name):
        return f"{why}; {allowed}"
    return "" if SUBSYSTEM.fullmatch(name) else allowed
