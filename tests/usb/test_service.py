"""The service as systemd runs it: start, status, reload, watchdog, an API server that is away, stop."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from support.checkout import CHECKOUT
from system.waiting import eventually
from usb.machine import TIMEOUT
from usb.site import CONFIG, CONFIG_FILE, FTDI, RESOURCES

if TYPE_CHECKING:
    from usb.site import Site

ADDED = "new.example.com/stick"
GOOD = f"{CONFIG}\n  - name: {ADDED}\n    match: [{{vendor: 1234}}]\n"
BAD = CONFIG.replace("vendor: 1a86", "vendor: 1a8")
WRONG_CONFIGURATION = "78"
CLAIMED = f"{CONFIG}\n  - name: {ADDED}\n    match: [{{vendor: 1234}}]\n    publish: dra\n"
DROP_IN = "/etc/systemd/system/devwatch.service.d/dra.conf"
FOLDERS = "/var/lib/kubelet/plugins /var/lib/kubelet/plugins_registry"
SOCKETS = "/var/lib/kubelet/plugins/devwatch.io/dra.sock /var/lib/kubelet/plugins_registry/devwatch.io-reg.sock"
NONE, ONE = (f"{count} of {len(RESOURCES)} resources present" for count in (0, 1))


def test_the_service_starts_and_says_how_things_are(site: Site) -> None:
    """It is ready after its first certain look, and its status line tells a person how many resources are present."""
    site.machine.run("systemctl restart devwatch")
    assert site.state("ActiveState") == "active"
    site.await_state("StatusText", NONE)
    site.machine.plug("a", serial="DW0001")
    site.await_state("StatusText", ONE)
    assert site.await_log("daemon.started")["node"] == site.node
    assert f'Status: "{ONE}"' in site.machine.run("systemctl status devwatch")


def test_a_good_configuration_is_taken_over_by_a_reload(site: Site) -> None:
    """The new resource is on the Node, and taken away again with the configuration before it; the process is the same."""
    before = site.state("MainPID")
    site.configure(GOOD)
    site.machine.run("systemctl reload devwatch")
    eventually(lambda: site.shows("0", ADDED), timeout=TIMEOUT)
    assert ADDED in site.await_log("config.reloaded")["resources"]
    site.configure(CONFIG)
    site.machine.run("systemctl reload devwatch")
    eventually(lambda: site.shows(None, ADDED), timeout=TIMEOUT)
    assert (site.state("MainPID"), site.state("ActiveState")) == (before, "active")


def test_a_bad_configuration_fails_the_reload_and_changes_nothing(site: Site) -> None:
    """`systemctl reload` fails, the journal names the place, and the service goes on with what it had."""
    site.machine.plug("a", serial="DW0001")
    site.await_counts({FTDI: 1})
    before, version = site.state("MainPID"), site.version()
    site.configure(BAD)
    done = site.machine.attempt("systemctl reload devwatch")
    assert done.returncode != 0, done
    line = next(number for number, text in enumerate(BAD.splitlines(), start=1) if "1a8," in text)
    assert f"{CONFIG_FILE}:{line}:" in site.journal()
    assert (site.state("MainPID"), site.state("ActiveState"), site.version()) == (before, "active", version)
    site.machine.unplug("a")
    site.await_counts({})


def test_a_service_that_hangs_is_restarted_and_no_count_falls(site: Site) -> None:
    """Stopped (SIGSTOP) it feeds no watchdog: systemd ends it and starts it anew, while the Node goes on showing the stick."""
    site.machine.plug("a", serial="DW0001")
    site.await_counts({FTDI: 1})
    before = site.state("MainPID")
    site.machine.run(f"kill -STOP {before}")
    try:
        eventually(lambda: site.state("MainPID") not in {"0", before}, timeout=TIMEOUT)
    finally:
        site.machine.run("systemctl kill --signal=CONT devwatch")
    site.await_state("StatusText", ONE)
    assert "Watchdog timeout" in site.journal()
    assert site.state("Result") == "success"
    site.await_counts({FTDI: 1})
    assert [r["resources"] for r in site.log("node.patched") if r["resources"].get(FTDI) == 0] == []


def test_an_api_server_that_is_away_is_waited_for(site: Site) -> None:
    """The service starts without it, says so in its status line, looks all the same, and makes good when it is back."""
    site.machine.run("systemctl stop devwatch")
    site.apiserver.stop()
    site.machine.run("systemctl start devwatch")
    site.await_state("StatusText", f"{NONE}; API server unreachable since ")
    site.machine.plug("a", serial="DW0001")
    site.await_state("StatusText", f"{ONE}; API server unreachable since ")
    site.apiserver.start()
    site.await_counts({FTDI: 1})
    eventually(lambda: site.state("StatusText") == ONE, timeout=TIMEOUT)
    assert site.state("NRestarts") == "0"


def test_a_stopped_service_leaves_what_is_advertised(site: Site) -> None:
    """It ends well, and the Node still shows the stick."""
    site.machine.plug("a", serial="DW0001")
    site.await_counts({FTDI: 1})
    version = site.version()
    site.machine.run("systemctl stop devwatch")
    assert (site.state("ActiveState"), site.state("Result")) == ("inactive", "success")
    assert site.log("daemon.stopped")[0]["status"] == 0
    assert site.version() == version
    site.await_counts({FTDI: 1})


def test_a_wrong_configuration_is_no_reason_to_try_again(site: Site) -> None:
    """The service fails with status 78 and stays down until somebody repairs the file."""
    site.configure(BAD)
    assert site.machine.attempt("systemctl restart devwatch").returncode != 0
    assert (site.state("ActiveState"), site.state("ExecMainStatus")) == ("failed", WRONG_CONFIGURATION)
    assert site.state("NRestarts") == "0"


def test_the_drop_in_lets_the_driver_have_its_folders(site: Site) -> None:
    """Without it the sandbox keeps them read-only, and the log says so; with it there are both sockets, and a folder for CDI files."""
    machine = site.machine
    machine.run(f"mkdir -p {FOLDERS} {posixpath.dirname(DROP_IN)}")
    site.configure(CLAIMED)
    machine.run("systemctl restart devwatch")
    assert "Read-only file system" in site.await_log("kubelet.lost")["error"]
    machine.install(DROP_IN, (CHECKOUT / "systemd" / "dra.conf").read_text("utf-8"))
    machine.run("systemctl daemon-reload; systemctl restart devwatch")
    eventually(lambda: machine.attempt(f"ls {SOCKETS} && test -d /var/run/cdi").returncode == 0, timeout=TIMEOUT)
    machine.run(f"rm {DROP_IN}; systemctl daemon-reload")
