"""Templates of the engines' settings (the harness replaces ``@NAME@``), and two proxies written for comparison.

``benchmarks.harness.engines`` starts the engines.
"""
