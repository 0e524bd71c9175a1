"""The schedule spaces, installed as convtune.schedules: `convtune.space` finds them by itself; README.md is a map."""
