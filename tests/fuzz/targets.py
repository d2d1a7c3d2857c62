"""All targets by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.annotation import ANNOTATION
from fuzz.answer import ANSWER
from fuzz.claims import CLAIMS
from fuzz.configuration import CONFIGURATION
from fuzz.kubelet import KUBELET
from fuzz.plugin import PLUGIN
from fuzz.record import RECORD
from fuzz.uevent import UEVENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fuzz.target import Target

TARGETS: Mapping[str, Target] = {
    "annotation": ANNOTATION,
    "answer": ANSWER,
    "claims": CLAIMS,
    "configuration": CONFIGURATION,
    "kubelet": KUBELET,
    "plugin": PLUGIN,
    "record": RECORD,
    "uevent": UEVENT,
}
