"""Images that are put into a data-root from outside: which are wanted, what is in them, and how they are loaded.

It reads files of seeds and another daemon's images, and loads through the API of a daemon that somebody else runs.
"""
