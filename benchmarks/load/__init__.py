"""What makes and takes load: wrk's scripts, the open-loop generator, the large-body client and the upload sink.

Each runs as a process of its own on the load CPUs; job in by standard input (keys never stand in a process list),
result out as one line of JSON on standard output.
"""
