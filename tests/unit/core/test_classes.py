"""The names of device classes: guessable, valid, and one for each resource."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devwatch.core.classes import class_names, device_classes
from devwatch.core.names import resource_name_fault
from devwatch.core.rules import Publish
from support.build import rule

LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAMES = st.from_regex(r"[a-z0-9.-]{1,8}/[A-Za-z0-9]([-A-Za-z0-9_.]{0,8}[A-Za-z0-9])?", fullmatch=True)


def name_of(resource: str) -> str:
    """Return the name of the class of a resource that is alone."""
    ((_, name),) = class_names([resource])
    return name


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        ("aeotec/zstick", "aeotec.zstick"),
        ("nortek.com/zigbee", "nortek.com.zigbee"),
        ("example.com/Z_Stick", "example.com.z-stick"),
        ("a/b.c", "a.b.c-c06205"),
        ("a/b-.c", "a.b.c-2810c7"),
    ],
)
def test_a_name_is_the_resource_as_a_dns_name(resource: str, name: str) -> None:
    """In lower case, with a dot and dashes; digits where a dot stands after the slash."""
    assert name_of(resource) == name


@given(st.lists(NAMES.filter(lambda name: not resource_name_fault(name)), unique=True))
def test_every_resource_has_a_valid_name_of_its_own(resources: list[str]) -> None:
    """Whatever else is configured."""
    names = [name for _, name in class_names(resources)]
    assert len(set(names)) == len(resources)
    for name in names:
        assert re.fullmatch(rf"{LABEL}([.]{LABEL})*", name), name


def test_a_name_that_is_taken_gets_digits() -> None:
    """The first one keeps it."""
    first, second = class_names(["a/z_b", "a/z-b"])
    assert first == ("a/z_b", "a.z-b")
    assert re.fullmatch(r"a\.z-b-[0-9a-f]{6}", second[1])


def test_a_class_selects_the_devices_of_its_resource_and_serves_its_name() -> None:
    """Resources that are published in another way have none."""
    rules = [rule("aeotec/zstick", publish=Publish.DRA), rule("a/b"), rule("a/c", publish=Publish.DEVICE_PLUGIN)]
    assert list(device_classes(rules)) == [
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": "aeotec.zstick", "labels": {"app.kubernetes.io/managed-by": "devwatch"}},
            "spec": {
                "extendedResourceName": "aeotec/zstick",
                "selectors": [
                    {
                        "cel": {
                            "expression": "device.driver == 'devwatch.io' && "
                            "device.attributes['devwatch.io'].resource == 'aeotec/zstick'"
                        }
                    }
                ],
            },
        }
    ]
