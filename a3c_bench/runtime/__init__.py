"""What every run needs: its directory, recorder, checkpoints, clock, signals, threads and seeds."""
