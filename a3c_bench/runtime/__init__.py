"""One run's books: its directory, recorder, checkpoints, clock, signals and seeds."""
