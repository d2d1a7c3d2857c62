"""The resources of the soak: for each way of publishing one whose sticks flap, and one whose sticks pods have."""

from __future__ import annotations

import json
from dataclasses import dataclass

PREFIX = "soak"
"""That of the names of the resources, as `system.handover` forms them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One resource and its sticks, which share vendor and product."""

    name: str
    publish: str
    product: str
    vendor: str = "0658"

    @property
    def resource(self) -> str:
        """The extended resource."""
        return f"{PREFIX}.example/{self.name}"

    def entry(self) -> dict[str, object]:
        """Return its part of the configuration."""
        return {
            "name": self.resource,
            "match": [{"vendor": self.vendor, "product": self.product}],
            "publish": self.publish,
            "removalGrace": "200ms",
            "evict": {"after": "1s"},
        }


FLAPPING = (
    Kind(name="flapping", publish="nodeStatus", product="0200"),
    Kind(name="flapping-plugin", publish="devicePlugin", product="0201"),
    Kind(name="flapping-claims", publish="dra", product="0202"),
)
"""Their sticks come and go many times a second, and no pod asks for them."""
MOUNTED = Kind(name="mounted", publish="nodeStatus", product="0203")
HANDED = Kind(name="handed", publish="devicePlugin", product="0204")
CLAIMED = Kind(name="claimed", publish="dra", product="0205")
PASSING = Kind(name="passing", publish="devicePlugin", product="0206")
"""It comes with one reload and goes with the next: each time a plugin is registered and ended."""


def kinds(*, dra: bool) -> tuple[Kind, ...]:
    """Return the resources that are always there, in the order of the configuration."""
    return tuple(kind for kind in (*FLAPPING, MOUNTED, HANDED, CLAIMED) if dra or kind.publish != "dra")


def configuration(*, dra: bool, passing: bool = False) -> str:
    """Return the configuration file. JSON is YAML."""
    listed = kinds(dra=dra) + ((PASSING,) if passing else ())
    return json.dumps({"resources": [kind.entry() for kind in listed], "sweep": "2s"}, indent=1) + "\n"
