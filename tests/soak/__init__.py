"""Soak: hours of mixed life on a real udevd and a real API server, in which nothing may grow.

`python -m soak --seconds 3600 --rate 100` as root, with KUBEBUILDER_ASSETS naming a folder with kube-apiserver and etcd.
"""
