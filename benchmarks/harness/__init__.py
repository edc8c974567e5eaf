"""Shared by all benchmarks: processes and CPUs, engines and back ends, wrk, stored results.

The scripts one level up decide what is measured.
"""
