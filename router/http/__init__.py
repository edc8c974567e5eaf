"""HTTP as rules and codecs: header rules, targets, ids, local responses, the bytes of HTTP/1.1. No I/O."""
