"""What everything else is made of: errors, the values that are passed on, the log, state files.

It knows nothing of pools and engines. It writes the files that it is asked to, and the log; nothing else.
"""
