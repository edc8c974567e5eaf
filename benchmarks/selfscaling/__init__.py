"""A simulated router for the self-scaler: load, CPUs and pods. No clock, no I/O, no plotting."""
