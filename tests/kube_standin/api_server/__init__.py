"""An API server stand-in: it responds to the router and the tests like the real Kubernetes API server.

The decisions are in modules without I/O: `store` (objects, versions, history), `writes` (what a write changes and what
is refused), `defaults`, `managed_fields`, `patches`, `selectors`, `rbac`. `server` does the I/O. Nothing here imports
the router. The stand-in has no behavior that a real server lacks: `tests/kube_standin/fault_proxy.py` injects faults in
front of either.
"""
