"""devwatch advertises the USB serial sticks of a node as Kubernetes extended resources."""

__version__ = "0.1.0"
