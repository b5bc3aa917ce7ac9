"""Many at once: processes and threads, what they share, and what they tell each other."""
