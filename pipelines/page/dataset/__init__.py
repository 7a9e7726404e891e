"""The page of one dataset version: who is in it, who is not and why, and whether the thresholds are right."""
