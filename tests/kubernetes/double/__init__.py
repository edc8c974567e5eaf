"""A double of the Kubernetes API server: the same answers as the real one, to the requests that the router and its
tests make.

What decides lives in modules without I/O: `store` (objects, versions, history), `rules` (defaults, validation, what an
update may change), `managed` (who wrote which field), `patches`, `selectors`, `rbac`. `server` moves bytes. Nothing
here knows the router. It can do nothing that the real server cannot: faults are made by `tests/kubernetes/proxy.py`,
which stands before either.
"""
