"""HTTP/2 as rules and a codec: cutting and limits of frames, the connection's state, header fields. No I/O."""
