"""A simulated router for the self-scaler: its load, its CPUs, its pods. No clock, no I/O, no plotting."""
