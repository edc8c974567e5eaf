"""HTTP/1.1 as this router speaks it: header rules, addresses, ids and the router's own answers. No I/O, no state."""
