"""What all benchmarks share: processes and CPUs, engines and back-ends, wrk, results on disk.

Nothing here decides what is measured; that is in the scripts one level up.
"""
