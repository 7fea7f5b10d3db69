"""What users configured: the environment, dockerd's command line, daemon.json.

It reads the environment and daemon.json, and acts on nothing.
"""
