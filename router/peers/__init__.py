"""Connections between router pods: what is said over them, how both ends prove themselves, who is connected.

    mesh       which peers there are, one link with each, who lives          (asyncio)
    link       one connection: hand-shake, heartbeats, bounds                (asyncio)
    dialling   how an address is reached, and what a failure proves          (asyncio)
    roster     which of two connections stays, what is known of each peer    (no I/O)
    handshake  mutual proof of a shared secret, versions, session's codes    (no I/O)
    encryption TLS from there on, with the certificate that was named        (no I/O)
    frames     where a frame ends, and that it is the peer's                 (no I/O)
    wire       the messages and their encoding                               (no I/O)

Each imports only what stands below it, and `endings`: why connections end. Must not live here: what the messages
lead to.
"""
