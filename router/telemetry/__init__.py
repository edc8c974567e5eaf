"""Counters, metrics, logs and traces of the router.

Nothing here decides anything about a request.
`counters`, `histogram`, `journal`, `tracing` and `access_log` are used by the data plane and import nothing large;
`metrics`, `exposition` and `spans` are used by the supervisor only.
"""
