"""Soak: hours of mixed life on a real udevd, a real API server and a real kubelet with containers, in which nothing may grow.

`python -m soak --seconds 3600 --rate 100` as root, with KUBEBUILDER_ASSETS naming a folder with the programs of a control plane and a
kubelet; containerd and runc are found by PATH. Devices by ResourceClaims are part of it where the API server is 1.34 or newer.
"""
