#!/bin/bash
# guard.sh DIR SANDBOX - removes the throw-away station in DIR as soon as its owner lets go of it.
#
# The owner holds the other end of standard input and never writes to it: end of file means that it dropped the station
# or died, by whatever signal. Tidying up is thus one piece of code, used at every end and in a process of its own.
# Only processes that run one of the station's programs in a directory below DIR are ended: a shell that somebody opened
# there to look around stays.
set -uo pipefail
trap '' INT TERM HUP QUIT
DIR=$1 SANDBOX=$2
cd /
while read -r _; do :; done

ours() { # ours NAME...: ids of the station's processes of these (kernel, 15 byte) names
    local p name
    for p in $(find /proc/[0-9]*/cwd -maxdepth 0 \( -lname "$DIR" -o -lname "$DIR/*" \) -printf '%h\n' 2>/dev/null); do
        read -r name 2>/dev/null < "$p/comm" || continue
        case " $* " in *" $name "*) echo "${p#/proc/}";; esac
    done
}
signal() { # signal SIG NAME...
    local p
    for p in $(ours "${@:2}"); do kill -"$1" "$p" 2>/dev/null; done
}
gone() { # gone TIMES NAME...: waits for the end of these processes, that often 50 ms
    local i
    for ((i = 0; i < $1; i++)); do
        [ -n "$(ours "${@:2}")" ] || return 0
        sleep 0.05
    done
    return 1
}

signal KILL silvasonic-cont redis-server pgbouncer chromedriver chromium prometheus
# an immediate shutdown, because it alone removes PostgreSQL's shared memory; the server may have been stopped meanwhile
signal QUIT postgres
signal CONT postgres
# a sandbox on its way up comes up first, else what it is about to make could not be found
gone 400 podman-sandbox || signal KILL podman-sandbox
if [ -f "$DIR/podman/sandbox.env" ]; then "$SANDBOX" down "$DIR/podman" >/dev/null 2>"$DIR/down.log" || cat "$DIR/down.log" >&2; fi
gone 100 postgres initdb || signal KILL postgres initdb
if [ -f "$DIR/redis/address" ]; then ip address del "$(cat "$DIR/redis/address")" dev lo 2>/dev/null; fi
# file systems that a test mounted and could not unmount any more
grep -o " $DIR/[^ ]*" /proc/self/mounts | sort -r | while read -r place; do umount -l "$place"; done
rm -rf --one-file-system "$DIR"
