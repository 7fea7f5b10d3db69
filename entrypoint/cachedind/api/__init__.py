"""How clients reach the daemon: addresses, sockets that are bound before it is up, certificates.

It touches sockets, their files, and the directories of certificates that docker:dind names.
"""
