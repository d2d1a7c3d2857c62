"""The DeviceClasses by which pods and claims ask for a resource that is published by slices (`publish: dra`)."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from devwatch.core.names import DRIVER
from devwatch.core.rules import Publish

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devwatch.core.rules import ResourceRule

MANAGED_BY = {"app.kubernetes.io/managed-by": "devwatch"}
"""The label of the classes: devwatch names them, but neither writes nor deletes any."""
_DIGITS = 6
"""Hex digits of the digest in a name that would not be unique, or not be valid."""


def class_names(resources: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each resource with the name of its class, a DNS subdomain (RFC 1123).

    The name is that of the resource in lower case, with `.` and `-` in place of `/` and `_`. Where a dot stands after the slash, or an
    earlier resource has the name, digits of its hash tell it apart.
    """
    taken = set[str]()
    for resource in resources:
        prefix, _, short = resource.lower().replace("_", "-").partition("/")
        name = f"{prefix}.{re.sub('-*[.][-.]*', '.', short)}"  # a part of a DNS name begins and ends with a letter or digit
        if "." in short or name in taken:
            name = f"{name}-{hashlib.sha256(resource.encode()).hexdigest()[:_DIGITS]}"
        taken.add(name)
        yield resource, name


def device_classes(rules: Iterable[ResourceRule]) -> Iterator[dict[str, object]]:
    """Yield the class of each resource with `publish: dra`, as an object of resource.k8s.io/v1."""
    for resource, name in class_names(rule.name for rule in rules if rule.publish is Publish.DRA):
        selector = f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].resource == '{resource}'"
        yield {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": name, "labels": dict(MANAGED_BY)},
            "spec": {"extendedResourceName": resource, "selectors": [{"cel": {"expression": selector}}]},
        }
