"""Authentication of scoring requests by keys and tokens. No I/O, no clock; errors and reprs contain no secrets."""
