"""The engines' settings as templates (``@NAME@`` is filled in), and the two proxies written for comparison.

No measuring happens here; how an engine is started is in ``benchmarks.harness.engines``.
"""
