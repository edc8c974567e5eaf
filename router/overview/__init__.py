"""What operators see of a running router: metrics, status, explanations, capacity. Reads, and changes nothing.

Everything here is assembled from what the supervisor's parts know anyway, at the moment somebody asks.
"""
