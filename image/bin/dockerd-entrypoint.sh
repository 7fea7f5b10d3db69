#!/bin/sh
# The image's entrypoint: a start of the daemon, the tool for people, or a client command (docker:dind's rules).
#
# docker-init comes first, so that SIGTERM ends the start at any moment: as PID 1 the kernel would drop the signal
# until a handler is installed. A second docker-init, which holds the lease, follows when dockerd is executed.
set -eu

if [ "$#" -eq 0 ] || [ "${1#-}" != "$1" ] || [ "$1" = dockerd ]; then
	exec docker-init -s -- /opt/cachedind/bin/python -IS /opt/cachedind/boot.py boot "$@"
fi
if [ "$1" = cachedind ]; then
	exec "$@"
fi
exec docker-entrypoint.sh "$@"
