"""The data plane of one worker: accepts clients, forwards requests, streams responses.

    gateway            builds the parts below for one worker
    acceptor           listening sockets and TLS handshakes
    client_connection  HTTP/1.1 to clients; its parser is `request_reader`
    exchange           one request and its response, between client and replica; its record is `request`
    admission          decides whether a request gets a slot, is queued or is refused
    routes             services and versions, found in `routing_table`; `pool` has the connections to a replica
    replica_connection HTTP/1.1 to replicas

Each module imports only modules below it. Client and replica connections and exchanges call each other through the
interfaces in `http.streams`.
"""
