"""Self-scaling: the router's own size, in CPUs (or workers) and pods.

Contains: signals, decisions (`self_scaler`), the loop that applies them, and the actuator for workers. Does not
contain: Kubernetes (the actuator for pods is in `cluster.kubernetes`).
"""
