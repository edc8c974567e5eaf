"""Settings: their declarations, the parser of values, and the sources that they are loaded from."""
