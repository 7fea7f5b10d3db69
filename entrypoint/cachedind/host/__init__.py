"""The doors to this machine: system calls, /proc, programs, mounts, cgroups, iptables, locks, whole directories.

What happens to the machine happens here, and nothing is decided here. It knows nothing of engines and pools. Most of
it needs root.
"""
