"""The edge to this machine: udev, sysfs, systemd and the lock."""
