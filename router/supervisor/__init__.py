"""The supervisor process: builds the parts of a router and connects cluster, workers, peers and control loop."""
