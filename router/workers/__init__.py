"""Worker processes: the program that each runs, its channel to the supervisor, and the pool that keeps them running."""
