"""Benchmarks: measurements of the router and of other proxies under the same conditions.

Neither the router nor its tests import this package. Run scripts as ``python -m benchmarks.<name>`` from the root of
the repository. benchmarks/README.md explains the results.
"""
