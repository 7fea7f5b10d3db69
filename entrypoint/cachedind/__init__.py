"""Docker-in-Docker whose build cache survives."""
