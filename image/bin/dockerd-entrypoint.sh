#!/bin/sh
# The image's entrypoint: a start of the daemon, the tool for people, or a client command (docker:dind's rules).
#
# SIGTERM must end a start at any moment, but the kernel drops a signal to PID 1 that has neither a handler nor is
# blocked. So this shell has a handler, env blocks the signal over the change of programs, and docker-init, which waits
# for it and passes it on, is PID 1 from then on; Python is not, and takes the default action once it has unblocked the
# signal that it inherited as blocked. The supervisor, which holds the lease, is its successor above dockerd.
trap 'exit 143' TERM
set -eu

if [ "$#" -eq 0 ] || [ "${1#-}" != "$1" ] || [ "$1" = dockerd ]; then
	# docker:dind's words for the API's TCP socket. People change them in that file with sed, to close the API to others
	# (docker-library/docker#227); so they count here too, unless CACHEDIND_LISTEN says where to listen.
	if [ -n "${DOCKER_TLS_CERTDIR:-}" ]; then
		tcp="--host=tcp://0.0.0.0:2376"
	else
		tcp="--host=tcp://0.0.0.0:2375"
	fi
	tcp=${tcp#--host=tcp://}
	export CACHEDIND_LISTEN="${CACHEDIND_LISTEN:-${tcp:-none}}"
	exec env --block-signal=TERM docker-init -s -- /opt/cachedind/bin/python -IS /opt/cachedind/boot.py boot "$@"
fi
if [ "$1" = cachedind ]; then
	exec "$@"
fi
exec docker-entrypoint.sh "$@"
