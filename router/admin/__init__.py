"""The admin port: metrics, health, status, explanations, capacity, and the log configuration.

`server` opens the port, and `routes` has most of its handlers. Each document is derived from the state of the
supervisor's parts (`overview`) at the time of the request.
"""
