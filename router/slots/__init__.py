"""Slots: who may have a request in flight at which replica. No sockets, no clock, no knowledge of HTTP.

`ledger` is the one authority for a version's slots; `holder` is a front-end's half, which keeps what it was
granted and queues what must wait; `messages` are the words the two exchange.
"""
