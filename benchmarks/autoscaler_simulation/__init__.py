"""Simulation of autoscalers: the router's and those of its peers, under the same loads.

Contains: the loads (`loads`), requests and replicas in simulated time (`simulation`), the peers' published algorithms
(`peers`), the figures and the plot (`__main__`). The results are in README.md.
"""
