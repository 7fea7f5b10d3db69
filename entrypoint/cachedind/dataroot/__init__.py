"""One data-root: its lease, what is the case there, which store and driver it gets, the witness of its daemon.

It takes locks and tries drivers in the data-root. It knows no pool.
"""
