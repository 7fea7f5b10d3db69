"""The shell and the small tools that scripts around docker:dind use, over a Debian that goes on as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.waiting import wait_until

if TYPE_CHECKING:
    from helpers.dind import Dind


# Each line ends with what ash does. What it is for a shell that takes `&>` for a job in the background, has neither
# [[ nor source, and turns escapes into characters, is another one, or nothing.
SCRIPT = r"""
if ip link show nowhere &>/dev/null; then echo 1 there; else echo 1 absent; fi
n=0; until test $n = 3 &>/dev/null; do n=$((n + 1)); done; echo 2 $n
echo 'word=sourced' >/run/words; source /run/words; echo 3 $word
if [[ $word == so* && ! $word =~ ^x ]]; then echo 4 match; fi
if [ $word == sourced ]; then echo 5 equal; fi
echo -e '6\tescaped'; echo '7\tplain'
echo "8 ${word:0:4} ${word/ed/e}"
function say() { local what=$1; echo "9 $what"; }; say function
trap 'echo 10 trapped' SIGUSR1; kill -SIGUSR1 $$
"""
SAID = ["1 absent", "2 3", "3 sourced", "4 match", "5 equal", "6\tescaped", "7\\tplain"]
SAID += ["8 sour source", "9 function", "10 trapped"]


@pytest.mark.parametrize("how", ["sh -c", "shebang"])
def test_sh_understands_what_ash_does(bench: Dind, how: str) -> None:
    bench.put("/srv", {"script": f"#!/bin/sh\n{SCRIPT}"}, mode=0o755)
    done = bench.exec("/srv/script") if how == "shebang" else bench.exec("sh", "-c", SCRIPT)
    assert done.stdout.splitlines() == SAID


def test_network_tools(bench: Dind) -> None:
    """As wait loops, health checks of compose and people call them."""
    bench.sh("mkdir -p /srv/www; echo hello >/srv/www/_ping; httpd -p 127.0.0.1:8123 -h /srv/www")
    wait_until(lambda: bench.exec("nc", "-z", "127.0.0.1", "8123", check=False).status == 0, what="nc -z to connect")
    assert bench.exec("nc", "-z", "-w1", "127.0.0.1", "8124", check=False).status != 0
    assert bench.sh("wget -qO- http://127.0.0.1:8123/_ping") == "hello"
    bench.sh("wget -q --spider -T 5 http://127.0.0.1:8123/_ping")
    assert bench.exec("wget", "-q", "--spider", "http://127.0.0.1:8123/nothing", check=False).status != 0
    assert "127.0.0.1:8123" in bench.sh("netstat -tlnp | grep httpd")
    assert "127.0.0.1" in bench.sh("ifconfig lo")
    assert " 0% packet loss" in bench.sh("ping -c 1 -w 5 127.0.0.1")
    assert "httpd" in bench.sh("ps")
    assert bench.sh("echo a page | less") == "a page"
    bench.sh("killall httpd")


STRANGER = r"""
cd /srv
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 2 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null
openssl s_server -accept 8443 -cert cert.pem -key key.pem -WWW >/dev/null 2>&1 &
echo $! >server.pid
until nc -z localhost 8443; do sleep 0.02; done
"""


def test_wget_does_not_trust_a_stranger(bench: Dind) -> None:
    bench.sh(STRANGER)
    refused = bench.exec("wget", "-qO-", "https://localhost:8443/cert.pem", check=False)
    assert (refused.status != 0, refused.stdout) == (True, ""), refused.output
    assert "BEGIN CERTIFICATE" in bench.sh("wget --no-check-certificate -qO- https://localhost:8443/cert.pem")
    bench.sh("SSL_CERT_FILE=/srv/cert.pem wget -qO- https://localhost:8443/cert.pem; kill $(cat /srv/server.pid)")


def test_what_debian_has_is_debian_s(bench: Dind) -> None:
    names = "awk cat find grep ip iptables kill ls mount mountpoint netstat nc ps sed tar top umount xargs"
    script = 'for name; do echo "$name $(readlink -f "$(which "$name")")"; done'
    found = dict(line.split() for line in bench.exec("sh", "-c", script, "sh", *names.split()).stdout.splitlines())
    assert set(found) == set(names.split())
    assert [name for name, path in found.items() if path.endswith("/busybox")] == []
    # Each link is one that no package has; and nothing that boots machines is there.
    assert (
        bench.sh("for f in $(find /usr/bin -lname busybox -not -name sh); do dpkg -S $f; done 2>/dev/null", check=False)
        == ""
    )
    assert bench.exec("sh", "-c", "which init reboot rpm nuke", check=False).stdout == ""


CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Multi-Arch: foreign
Maintainer: nobody
Description: none
"""
TOOL = "#!/bin/sh\necho the tool\n"
POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure -a -z "$2" ]; then
    update-alternatives --install /usr/bin/vi vi /usr/bin/vi.tool 10
fi
"""


def test_packages_are_installed_on_top(bench: Dind) -> None:
    """As in an image made from this one: a package with scripts of its own, a program for which there was a link, and
    an alternative; and a later version of the package that owns /bin/sh's link."""
    assert bench.sh("readlink /usr/bin/vi /usr/bin/telnet") == "busybox\nbusybox"
    version, architecture = bench.sh("dpkg-query --showformat '${Version} ${Architecture}' --show dash").split()
    control = {
        "tool": CONTROL.format(name="tool", version=1, architecture="all"),
        "dash": CONTROL.format(name="dash", version=f"{version}.later", architecture=architecture) + "Essential: yes\n",
    }
    bench.put("/srv", {f"{name}/DEBIAN/control": text for name, text in control.items()})
    programs = {"DEBIAN/postinst": POSTINST, "usr/bin/telnet": TOOL, "usr/bin/vi.tool": TOOL}
    bench.put("/srv/tool", programs, mode=0o755)
    bench.sh("cd /srv; mkdir -p dash/usr/bin; cp /usr/bin/dash dash/usr/bin; ln -s dash dash/usr/bin/sh")
    done = bench.exec("sh", "-euc", "cd /srv; for name in tool dash; do dpkg-deb -b $name; done; dpkg -i *.deb")
    assert "warning" not in done.output, done.output
    assert bench.sh("telnet; vi") == "the tool\nthe tool"
    assert bench.sh("readlink /bin/sh /usr/bin/sh.distrib") == "busybox\ndash"
    assert bench.sh("dpkg --audit; dpkg --verify dash busybox tool | grep -v /usr/share/", check=False) == ""
