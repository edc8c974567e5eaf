"""The command line: its syntax, the commands, and the generators of docs/settings.md and docs/metrics.md."""
