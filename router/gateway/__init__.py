"""The data plane: accepts clients, forwards requests, streams answers. One event loop, protocols instead of tasks.

`downstream` speaks with clients, `upstream` with replicas, `exchange` is one request's life between the two, `table`
is where requests may go, `gateway` puts them together for one worker.
"""
