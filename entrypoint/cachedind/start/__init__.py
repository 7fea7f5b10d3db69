"""One start, from the container's first instruction to dockerd's, and what stays beside dockerd.

Here is put together what the other packages can do; it is the only one that changes the whole container.
"""
