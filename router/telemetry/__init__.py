"""What the router tells about itself: counters, metrics, logs and the admin port.

Nothing here decides anything about a request, and nothing here is imported by `http`, `slots`, `scaling` or `auth`.
`counters` and `access_log` are written to by the data plane and so import neither aiohttp nor prometheus_client;
`metrics` and `admin` belong to the supervisor.
"""
