# What stands for docker:dind in scripts/bench ready: the daemon of the same image, started by the steps that
# docker:dind's own entrypoint is known for, one program after the other: keys and certificates as
# https://docs.docker.com/engine/security/protect-access/ makes them, then what a nested daemon needs.
set -eu
certs=/certs

# key FILE: 4096 bits of RSA, where there is none yet. Keys are kept with their directory, certificates are made anew.
key() {
	if [ ! -e "$1" ]; then openssl genrsa -out "$1" 4096; fi
}

# signed NAME PURPOSE [NAMES]: a certificate for one side, by the CA.
signed() {
	key "$certs/$1/key.pem"
	printf 'extendedKeyUsage = %s\n%s\n' "$2" "${3:+subjectAltName = $3}" >"$certs/$1/extensions"
	openssl req -new -key "$certs/$1/key.pem" -subj "/CN=bench $1" -out "$certs/$1/csr.pem"
	openssl x509 -req -in "$certs/$1/csr.pem" -CA "$certs/ca/cert.pem" -CAkey "$certs/ca/key.pem" -CAcreateserial \
		-days 825 -extfile "$certs/$1/extensions" -out "$certs/$1/cert.pem"
	cp "$certs/ca/cert.pem" "$certs/$1/ca.pem"
	openssl verify -CAfile "$certs/$1/ca.pem" "$certs/$1/cert.pem"
}

{
	mkdir -p "$certs/ca" "$certs/server" "$certs/client"
	key "$certs/ca/key.pem"
	openssl req -new -x509 -key "$certs/ca/key.pem" -subj '/CN=bench CA' -days 825 -out "$certs/ca/cert.pem"
	addresses=$(ip -oneline address | awk '{ sub("/.*", "", $4); printf ",IP:%s", $4 }')
	signed server serverAuth "DNS:docker,DNS:localhost,DNS:$(hostname)$addresses"
	signed client clientAuth
	rm -f /run/docker.pid /run/docker/containerd/containerd.pid
	iptables -nL
	iptables --version
	mount -t securityfs none /sys/kernel/security || :
	mount -t tmpfs none /tmp
	mount --make-rshared /
} >/dev/null 2>&1
export container=docker
exec docker-init -- "$@" --host=unix:///var/run/docker.sock --host=tcp://0.0.0.0:2376 --tlsverify \
	--tlscacert "$certs/server/ca.pem" --tlscert "$certs/server/cert.pem" --tlskey "$certs/server/key.pem"
