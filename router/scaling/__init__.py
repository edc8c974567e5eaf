"""Scaling: how many replicas a version should have, and which of them go when there are too many.

Lives here: decisions only (`demand`, `autoscaler`, `scaler`). They get time and facts as arguments and return what is
to be done. Must not live here: sockets, clocks, processes, Kubernetes.
"""
