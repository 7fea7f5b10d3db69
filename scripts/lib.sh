# What the shell scripts share: how they speak, how they fail, how they get a missing Debian package.
# shellcheck shell=bash

# Everything that is downloaded or made once and kept between runs is below this directory.
# shellcheck disable=SC2034 # for the scripts
CACHE_HOME=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cachedind

step() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

warn() { printf 'warning: %s\n' "$*" >&2; }

# die CODE CAUSE HINT: one line, and a second one with the remedy.
die() {
	printf 'error: %s\n' "$2" >&2
	[ -z "$3" ] || printf '       %s\n' "$3" >&2
	exit "$1"
}

# need_debian_package PROGRAM PACKAGE: installs PACKAGE with apt-get when PROGRAM is missing.
need_debian_package() {
	local program=$1 package=$2 log
	command -v "$program" >/dev/null && return
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		die 69 "$program is not installed" "install it (Debian's package is $package)"
	fi
	step "installing $package"
	log=$(mktemp)
	# The package lists may be fresh enough; and when they are not, a third-party source that does not
	# answer fails the update, but not what can be installed all the same.
	if ! apt_install "$package" >"$log" 2>&1; then
		apt-get update -q >>"$log" 2>&1 || :
		apt_install "$package" >>"$log" 2>&1 || {
			tail -n 15 "$log" >&2
			die 69 "apt-get install $package failed" "the whole log is $log"
		}
	fi
	rm -f "$log"
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$1"; }

# unpacked_program PACKAGE FILE: prints where FILE of a Debian package is, which is unpacked once, and not installed: what
# would be run as a service by installing it is only a program then.
unpacked_program() {
	local package=$1 file=$2 unpacked=$CACHE_HOME/unpacked/$1 staged
	if [ ! -e "$unpacked/$file" ]; then
		step "unpacking $package"
		mkdir -p "$CACHE_HOME/unpacked"
		staged=$(mktemp -d "$unpacked.XXXXXX")
		(cd "$staged" && apt-get -o APT::Sandbox::User=root download -q "$package" >/dev/null && dpkg-deb -x ./*.deb .) || {
			rm -rf "$staged"
			die 69 "Debian's $package could not be downloaded" "see apt-get's message above"
		}
		# Somebody else may have been quicker.
		mv -T "$staged" "$unpacked" 2>/dev/null || rm -rf "$staged"
	fi
	printf '%s\n' "$unpacked/$file"
}
