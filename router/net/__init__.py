"""TLS contexts, certificates, listening sockets, backoff, and addresses as text."""
