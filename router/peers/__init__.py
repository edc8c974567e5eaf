"""Links between router pods, and everything that pods exchange over them.

    leadership      what the leader sends, what other pods report to it     (no I/O)
    peer_reports    the latest report of each peer                          (no I/O)
    ledger_dispatcher  messages about slots to and from the owning pod         (no I/O)
    mesh            which peers there are, one link with each, their status (asyncio)
    listener        accepts connections, bounds concurrent handshakes       (asyncio)
    dialer          dials an address, interprets failures                   (asyncio)
    link            one connection: handshake, heartbeats, limits           (asyncio)
    peer_table      resolves duplicate connections, status of each peer     (no I/O)
    handshake       mutual proof of a shared secret, versions, session keys (no I/O)
    tls_stream      TLS within a link, with the announced certificate       (no I/O)
    frames          boundaries and authentication of frames                 (no I/O)
    wire            the messages and their encoding                         (no I/O)

Each imports only modules below it, and `close_reason`. `tls` makes the certificates.
"""
