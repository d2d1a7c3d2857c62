"""The service in the machine and the Node outside: what is done to the one shows on the other."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from system.apiserver import PATCH_ONLY, WATCH
from system.waiting import eventually
from usb.machine import HOST, TIMEOUT, MachineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from system.apiserver import ApiServer
    from usb.machine import Machine

CONFIG = """
resources:
  - name: ftdi.example.com/slow
    match: [{vendor: 0403, serial: "SLOW*"}]
    removalGrace: 30s
  - name: ftdi.example.com/adapter
    match: [{vendor: 0403, product: 6001}]
    removalGrace: 500ms
  - name: aeotec/zstick
    match: [{vendor: 0658, product: 0200}]
    removalGrace: 500ms
  - name: nortek.com/zwave
    match: [{vendor: 10c4, product: 8a2a, interface: "00"}]
    removalGrace: 500ms
  - name: nortek.com/zigbee
    match: [{vendor: 10c4, product: 8a2a, interface: "02"}]
    removalGrace: 500ms
  - name: huawei.com/modem
    match: [{vendor: 12d1, product: 1506}]
    removalGrace: 500ms
  - name: huawei.com/port
    match: [{vendor: 12d1, product: 1507}]
    count: devnode
    removalGrace: 500ms
  - name: example.com/nameless
    match: [{vendor: 1a86, product: 7523, serial: ""}]
    removalGrace: 500ms
  - name: coral.ai/edgetpu
    subsystem: usb
    match: [{vendor: 1a6e, product: 089a}, {vendor: 18d1, product: 9302}]
    removalGrace: 30s
  - name: example.com/hid
    subsystem: hidraw
    match: [{vendor: 0627, product: 0001}]
    removalGrace: 500ms
  - name: example.com/reader
    subsystem: usb
    match: [{vendor: 08e6, product: 4433}]
    removalGrace: 500ms
  - name: example.com/camera
    subsystem: video4linux
    match: [{vendor: 046d, properties: {ID_V4L_CAPABILITIES: "*:capture:*"}}]
    removalGrace: 500ms
"""
FTDI, SLOW, ZSTICK = "ftdi.example.com/adapter", "ftdi.example.com/slow", "aeotec/zstick"
ZWAVE, ZIGBEE = "nortek.com/zwave", "nortek.com/zigbee"
MODEM, PORT, NAMELESS = "huawei.com/modem", "huawei.com/port", "example.com/nameless"
CORAL, HID, READER, CAMERA = "coral.ai/edgetpu", "example.com/hid", "example.com/reader", "example.com/camera"
RESOURCES = (FTDI, SLOW, ZSTICK, ZWAVE, ZIGBEE, MODEM, PORT, NAMELESS, CORAL, HID, READER, CAMERA)

LIST_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
"""What tells the daemon that no pod holds a device that the kubelet handed over."""
CONFIG_FILE = "/etc/devwatch/config.yaml"
KUBECONFIG_FILE = "/etc/devwatch/kubeconfig"
JOURNAL = "journalctl --no-pager --unit devwatch"


class Site:
    """The machine as a node of a cluster: its Node has the name of the machine, its daemon is the service."""

    def __init__(self, machine: Machine, apiserver: ApiServer) -> None:
        """Make the Node, and put configuration and credentials where the unit reads them."""
        self.machine, self.apiserver = machine, apiserver
        self.node = machine.run("hostname").strip().lower()
        self._since = "0"
        apiserver.create_node(self.node)
        apiserver.service_account("devwatch", rules=[*PATCH_ONLY, *WATCH, LIST_PODS])
        self._config = ""
        machine.install(KUBECONFIG_FILE, json.dumps(self._kubeconfig()), mode="600")
        machine.install("/etc/devwatch/devwatch.env", f"DEVWATCH_KUBECONFIG={KUBECONFIG_FILE}\n")

    def _kubeconfig(self) -> dict[str, Any]:
        """Return the credentials; the server's certificate is for localhost, which the guest reaches by another address."""
        cluster = {
            "server": f"https://{HOST}:{urlsplit(self.apiserver.url).port}",
            "tls-server-name": "localhost",
            "certificate-authority-data": base64.b64encode(self.apiserver.ca_file.read_bytes()).decode(),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "outside", "cluster": cluster}],
            "users": [{"name": "devwatch", "user": {"token": self.apiserver.token("devwatch")}}],
            "contexts": [{"name": "outside", "context": {"cluster": "outside", "user": "devwatch"}}],
            "current-context": "outside",
        }

    def settle(self) -> None:
        """Have the service run with `CONFIG`, no stick plugged, and all of it on the Node, whatever a test before did."""
        self.apiserver.thaw()
        self.apiserver.start()
        self.machine.clear()
        if self._config != CONFIG or self.state("ActiveState") != "active":
            self.configure(CONFIG)
            self.machine.run("systemctl enable devwatch; systemctl reload-or-restart devwatch")
        self.await_counts({})
        self._since = self.machine.run("date +%s.%N").strip()

    # The service

    def configure(self, text: str) -> None:
        """Write the configuration file, and tell nobody."""
        self._config = text
        self.machine.install(CONFIG_FILE, text)

    def state(self, name: str) -> str:
        """Return a property of the service as systemd shows it, such as `StatusText`."""
        return self.machine.run(f"systemctl show --property {name} --value devwatch").strip()

    def await_state(self, name: str, wanted: str) -> str:
        """Return a property of the service once it contains a text."""

        def seen() -> str:
            value = self.state(name)
            assert wanted in value, f"{name} is {value!r}, not {wanted!r}"
            return value or " "

        return eventually(seen, timeout=TIMEOUT)

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the daemon's log records of this event since the test began."""
        lines = self.machine.run(f"{JOURNAL} --output cat --since @{self._since}").splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("event") == event]

    def await_log(self, event: str) -> dict[str, Any]:
        """Return the first log record of this event since the test began."""
        return eventually(lambda: self.log(event), timeout=TIMEOUT)[0]

    def journal(self) -> str:
        """Return what systemd and the daemon wrote since the test began, for people."""
        try:
            return self.machine.run(f"{JOURNAL} --output short-precise --since @{self._since}")
        except MachineError as error:
            return str(error)

    # The kubelet

    @contextmanager
    def kubelet(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        """Have the sockets of a kubelet in the machine; yield what returns each list that it was sent, as `usb.kubelet` prints it."""
        printed = self.machine.share / "kubelet.log"
        output = f"--property StandardOutput=file:/share/{printed.name}"
        path = "--setenv PYTHONPATH=/usr/local/lib/devwatch"
        self.machine.run(f"systemd-run --quiet --collect --unit kubelet {path} {output} python3 /share/kubelet.py")
        eventually(lambda: self.machine.run("test -S /var/lib/kubelet/device-plugins/kubelet.sock; echo $?") == "0\n")
        try:
            yield lambda: [json.loads(line) for line in printed.read_text("utf-8").splitlines()]
        finally:
            self.machine.run("systemctl stop kubelet")
            printed.unlink(missing_ok=True)

    # The Node

    def counts(self, *names: str) -> list[tuple[str | None, str | None]]:
        """Return capacity and allocatable of each of these resources, all of one moment."""
        status = self.apiserver.node(self.node)["status"]
        return [(status["capacity"].get(name), status["allocatable"].get(name)) for name in names]

    def shows(self, count: str | None, name: str) -> bool:
        """Return whether both maps hold this count, None for no such key."""
        return self.counts(name) == [(count, count)]

    def listed(self, name: str) -> list[dict[str, str]]:
        """Return the devices that the Node's annotation lists for a resource."""
        annotations = self.apiserver.node(self.node)["metadata"].get("annotations", {})
        listing: dict[str, list[dict[str, str]]] = json.loads(annotations.get("devwatch.io/devices", "{}"))
        return listing.get(name, [])

    def version(self) -> str:
        """Return the resourceVersion of the Node, which every change of it changes."""
        return str(self.apiserver.node(self.node)["metadata"]["resourceVersion"])

    def await_counts(self, wanted: Mapping[str, int]) -> None:
        """Return when both maps of the Node show these counts, and 0 for every other resource of `CONFIG`."""
        everything = {**dict.fromkeys(RESOURCES, 0), **wanted}

        def right() -> bool:
            seen = dict(zip(everything, self.counts(*everything), strict=True))
            wrong = {name: seen[name] for name, count in everything.items() if seen[name] != (str(count),) * 2}
            assert not wrong, f"the Node shows {wrong}; wanted {dict(wanted)} and 0 for all others"
            return True

        eventually(right, timeout=TIMEOUT)
