"""Many data-roots for many instances: keys, slots, goldens, and how a pool is kept in order.

It touches nothing outside of the pool's directory. Each function says which lock it needs or takes.
"""
