"""The shipped example: a local file, the entry script it names, and a request to try it with. Nothing to import."""
