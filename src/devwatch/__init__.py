"""devwatch advertises the USB serial sticks of a node as Kubernetes extended resources."""

__version__ = "0.2.0"
