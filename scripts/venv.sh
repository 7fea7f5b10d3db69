# The developers' tools: a venv made from the lock, on demand.
# shellcheck shell=bash

# use_venv: makes .venv when it is missing or older than the lock it was made from, and puts it on PATH.
use_venv() {
	local root lock venv wanted
	root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
	lock=$root/requirements/dev.txt
	venv=$root/.venv
	wanted=$(sha256sum <"$lock")
	if [ "$(cat "$venv/.lock" 2>/dev/null)" != "$wanted" ]; then
		step "making .venv from requirements/dev.txt"
		rm -rf "$venv"
		make_venv "$venv"
		"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock" ||
			die 69 "the tools of requirements/dev.txt could not be installed" "see pip's message above"
		# Written last: an interrupted installation is not mistaken for a whole one.
		printf '%s\n' "$wanted" >"$venv/.lock"
	fi
	PATH=$venv/bin:$PATH
}

# make_venv DIR: Debian keeps the venv module's other half in a package of its own.
make_venv() {
	need_debian_package python3 python3
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die 69 "python3 is older than 3.11" "put a newer python3 first on PATH"
	if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
		step "installing python3-venv"
		{ apt_install python3-venv || { apt-get update -q && apt_install python3-venv; }; } >/dev/null 2>&1 || :
		python3 -c 'import ensurepip, venv' 2>/dev/null ||
			die 69 "python3 cannot make a venv" "install what your python3 lacks (Debian's package is python3-venv)"
	fi
	python3 -m venv "$1"
}
