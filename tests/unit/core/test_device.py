"""A tty as a value: what identifies it, and how people want it sorted."""

from devwatch.core.device import Device, by_stability, natural

PHYSICAL = "/devices/pci0000:00/usb1/1-4"


def _tty(
    name: str,
    *,
    physical: str | None = PHYSICAL,
    incarnation: int = 1,
    links: tuple[str, ...] = (),
    properties: dict[str, str] | None = None,
) -> Device:
    return Device(
        devnode=f"/dev/{name}",
        devpath=f"{PHYSICAL}/1-4:1.0/{name}/tty/{name}",
        number=48128,
        incarnation=incarnation,
        physical=physical,
        links=links,
        properties=properties,
    )


def test_numbers_in_names_sort_as_numbers() -> None:
    """People read ttyUSB2 before ttyUSB10."""
    assert sorted(["ttyUSB10", "ttyS0", "ttyUSB2"], key=natural) == ["ttyS0", "ttyUSB2", "ttyUSB10"]


def test_a_device_without_a_udev_record_is_not_complete() -> None:
    """An empty record is one that udev wrote; no record is none."""
    bare = _tty("ttyUSB0")
    read = Device(devnode=bare.devnode, devpath=bare.devpath, number=1, incarnation=1, properties={})
    assert (bare.complete, read.complete) == (False, True)


def test_a_device_that_comes_back_is_another_one() -> None:
    """A stick pulled and plugged within a look has the same name and number, and is still a new arrival."""
    assert _tty("ttyUSB0").key == _tty("ttyUSB0", links=("/dev/zigbee",)).key
    assert _tty("ttyUSB0").key != _tty("ttyUSB0", incarnation=2).key


def test_ttys_of_one_stick_are_one_body() -> None:
    """A composite stick counts once; without a USB device behind it every devnode is its own."""
    assert _tty("ttyUSB0").body == _tty("ttyUSB1").body
    assert _tty("ttyS0", physical=None).body != _tty("ttyS1", physical=None).body


def test_virtual_consoles_are_told_from_hardware() -> None:
    """A listing can leave out what nobody can plug."""
    console = Device(devnode="/dev/tty1", devpath="/devices/virtual/tty/tty1", number=1025, incarnation=1)
    assert (console.virtual, _tty("ttyUSB0").virtual) == (True, False)


def test_the_first_link_is_the_one_to_name() -> None:
    """A device is named by its most stable link, by none without any."""
    assert _tty("ttyUSB0", links=("/dev/serial/by-id/x", "/dev/zigbee"), properties={}).link == "/dev/serial/by-id/x"
    assert _tty("ttyUSB0", properties={}).link is None


def test_no_link_is_named_until_the_record_is_complete() -> None:
    """Udev may still make a better one: what matches a rule is no reason to show it to others."""
    assert _tty("ttyUSB0", links=("/dev/serial/by-id/x",)).link is None


def test_links_that_follow_the_stick_come_first() -> None:
    """Sorted by stability: by-id, then by-path, then links of local rules."""
    links = ["/dev/zigbee", "/dev/serial/by-path/p", "/dev/serial/by-id/b", "/dev/serial/by-id/a", "/dev/gps"]
    expected = ["/dev/serial/by-id/a", "/dev/serial/by-id/b", "/dev/serial/by-path/p", "/dev/gps", "/dev/zigbee"]
    assert sorted(links, key=by_stability) == expected
