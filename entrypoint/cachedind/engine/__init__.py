"""An engine and its data: what lies where in a data-root, image stores, doubt and damage, a daemon for ourselves.

It reads and mends data of which the caller holds the lease, and runs private daemons on it. It knows no pool.
"""
