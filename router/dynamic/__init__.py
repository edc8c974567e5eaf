"""The dynamic configuration: reads it from its source, keeps the last valid one, and reports both to operators."""
