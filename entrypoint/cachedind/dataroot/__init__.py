"""One data-root: its lease, the facts about it, which store and driver it gets, the witness of its daemon.

It takes locks and tries drivers in the data-root. It knows nothing of pools.
"""
