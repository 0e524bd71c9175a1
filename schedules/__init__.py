"""The schedule spaces, installed as convtune.schedules: one file each, found by `convtune.space`, named by nobody."""
