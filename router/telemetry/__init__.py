"""What the router tells about itself: counters, metrics, logs and the admin port.

Nothing here decides anything about a request, and nothing here is imported by `http`, `slots`, `scaling` or `auth`.
`counters`, `journal`, `tracing` and `access_log` are written to by the data plane and import nothing large;
`metrics`, `admin` and `spans` belong to the supervisor.
"""
