"""Predictable scaling: laws fitted on small runs, and what they say of a large one."""
