"""Slots: which worker may have a request in flight at which replica. No sockets, no clock, no HTTP.

`ledger`, in the supervisor, is the only authority for a version's slots. `lease_cache`, in a worker, keeps granted
leases and queues requests. `messages` are exchanged between the two. `ownership` decides which pod's ledgers grant, and
`coordinator` holds all ledgers of a pod.
"""
