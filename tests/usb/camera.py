"""Be a USB camera of the guest's kernel (gadgetfs on dummy_hcd) until killed: `camera.py VENDOR PRODUCT`.

Descriptors as in "USB Device Class Definition for Video Devices", 1.0, of the least that uvcvideo takes: one format, and no stream is
ever sent. The files are those of Linux, include/uapi/linux/usb/gadgetfs.h.
"""

from __future__ import annotations

import os
import struct
import sys

CONTROL = "/dev/gadget/dummy_udc"
"""Endpoint 0 of a free controller, where gadgetfs is mounted."""
SETUP, TO_HOST = 3, 0x80
EVENT = 12
"""The size of a `usb_gadgetfs_event`: eight bytes, of a request where the type behind them is `SETUP`."""
WIDTH, HEIGHT, INTERVAL = 640, 360, 333333
YUY2 = b"YUY2\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
STREAM = struct.pack("<HBBI5H2I", 1, 1, 1, INTERVAL, 0, 0, 0, 0, 0, WIDTH * HEIGHT * 2, 1024)
"""What it streams, or would: the answer to every question."""


def configuration(packet: int) -> bytes:
    """Return the descriptors of the one configuration, whose endpoint takes packets of this size."""
    control = _class(1, "<HHIBB", 0x0100, 37, 6000000, 1, 1)
    control += _class(2, "<BHBB3HB", 1, 0x0201, 0, 0, 0, 0, 0, 0)  # the sensor
    control += _class(3, "<BHBBB", 2, 0x0101, 0, 1, 0)  # its stream
    stream = _class(1, "<BH8B", 1, 71, 0x81, 0, 2, 0, 0, 0, 1, 0)
    stream += _class(4, "<BB16s6B", 1, 1, YUY2, 16, 1, 0, 0, 0, 0)
    stream += _class(5, "<BBHH4IBI", 1, 0, WIDTH, HEIGHT, 1, 1, WIDTH * HEIGHT * 2, INTERVAL, 1, INTERVAL)
    body = struct.pack("8B", 8, 0x0B, 0, 2, 0x0E, 3, 0, 0)
    body += struct.pack("9B", 9, 4, 0, 0, 0, 0x0E, 1, 0, 0) + control
    body += struct.pack("9B", 9, 4, 1, 0, 1, 0x0E, 2, 0, 0) + stream
    body += struct.pack("<4BHB", 7, 5, 0x81, 2, packet, 0)
    return struct.pack("<BBH5B", 9, 2, 9 + len(body), 2, 1, 0, 0x80, 50) + body


def main(vendor: str, product: str) -> None:
    """Plug it, and answer every request."""
    device = struct.pack(
        "<BBH4BHHHBBBB", 18, 1, 0x0200, 0xEF, 2, 1, 64, int(vendor, 16), int(product, 16), 0, 0, 0, 0, 1
    )
    camera = os.open(CONTROL, os.O_RDWR)
    os.write(camera, bytes(4) + configuration(64) + configuration(512) + device)
    while event := os.read(camera, EVENT):
        direction, *_, length, kind = struct.unpack("<BBHHHI", event)
        if kind == SETUP and direction & TO_HOST:
            os.write(camera, STREAM[:length])
        elif kind == SETUP:
            os.read(camera, length)


def _class(kind: int, layout: str, *values: int | bytes) -> bytes:
    """Return a descriptor of the class, of the kind that its unit or its format has."""
    body = struct.pack(layout, *values)
    return struct.pack("3B", 3 + len(body), 0x24, kind) + body


main(*sys.argv[1:])
