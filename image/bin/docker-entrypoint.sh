#!/bin/sh
# The client side: makes a docker command of subcommands and flags, and finds the daemon (docker:cli's rules).
set -eu

# `docker run IMAGE ps` means docker ps, but `docker run IMAGE sh` means sh: what docker has help for is docker's.
if [ "${1#-}" != "${1-}" ] || { [ "$#" -gt 0 ] && docker help "$1" >/dev/null 2>&1; }; then
	set -- docker "$@"
fi

certs=${DOCKER_TLS_CERTDIR:+$DOCKER_TLS_CERTDIR/client}
have_certs() {
	[ -n "$certs" ] && [ -s "$certs/ca.pem" ] && [ -s "$certs/cert.pem" ] && [ -s "$certs/key.pem" ]
}

if [ -z "${DOCKER_HOST:-}" ]; then
	if [ -S /var/run/docker.sock ]; then
		export DOCKER_HOST=unix:///var/run/docker.sock
	elif [ -S "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/docker.sock" ]; then
		export DOCKER_HOST="unix://${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/docker.sock"
	elif have_certs || [ -n "${DOCKER_TLS_VERIFY:-}" ]; then
		export DOCKER_HOST=tcp://docker:2376
	else
		export DOCKER_HOST=tcp://docker:2375
	fi
fi

case $DOCKER_HOST in
tcp:*)
	if [ -z "${DOCKER_TLS_VERIFY:-}" ] && [ -z "${DOCKER_CERT_PATH:-}" ] && have_certs; then
		export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH="$certs"
	fi
	;;
esac

exec "$@"
