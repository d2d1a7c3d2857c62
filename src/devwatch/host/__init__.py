"""The edge to this machine: udev, sysfs, systemd and the node lock."""
