"""Load generators and sinks: wrk's scripts, the open-loop generator, the large-body client, the upload sink.

Each runs as its own process on the load CPUs. The job is passed by standard input, because command lines are
visible to other users and the job contains a key. The result is one line of JSON on standard output.
"""
