"""What logs say, for people: reports on what was tuned, and comparisons of schedules."""
