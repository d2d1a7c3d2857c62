"""The edge to the kubelet."""
