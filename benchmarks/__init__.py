"""Benchmarks: the router measured side by side with its peers.

Nothing here is imported by the router or its tests. Scripts run as ``python -m benchmarks.<name>`` from the root of
the repository; README.md beside this file says what each figure means.
"""
