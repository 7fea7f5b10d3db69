"""The commands for people: what they are called, what they look at, and how it is shown.

They take what they need through the same doors as a start, and never stand in the way of one.
"""
