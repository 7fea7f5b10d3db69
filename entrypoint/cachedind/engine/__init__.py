"""An engine and its data: what is where in a data-root, image stores, doubt and damage, private daemons.

It reads and mends data of which the caller holds the lease, and runs private daemons on it. It knows nothing of pools.
"""
