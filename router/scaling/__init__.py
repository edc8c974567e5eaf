"""Scaling: the number of replicas of each version, which replicas are removed, and the router's own size.

Contains: decisions (`demand`, `autoscaler`, `replica_reconciler`, `loop`). They get the time and the current state as
arguments, and return what to do. The router's own size is in `self`. Does not contain: sockets and Kubernetes.
"""
