"""Scenarios of the installation: what a user types, from a bare Debian to a recording, and what comes after it."""

import re
import time

from scenarios import RATE, RECORDS
from station import PROJECT, SETTINGS, ULTRAMIC, UNIT

WORKSPACE = "/mnt/data/workspace/recorder"
# A file that is being written, with a second of sound.
GROWS = "find {}/*/.buffer -name '*.wav' -size +700k | grep -q ."
USER = "birder"
# What the guests have prepared already; the database begins empty, and the disk is new.
BARE = ("runuser -u postgres -- dropdb silvasonic; runuser -u postgres -- dropuser silvasonic; podman rmi -fa; podman network rm"
        " silvasonic-net; rm -r /mnt/data; systemctl disable --now podman.socket; mkfs.ext4 -q /dev/vdb")


def setup(station, report):
    """The package is installed: one more command until a microphone is recorded on a disk of its own. Then an upgrade while it is
    recorded, and a reboot without network."""
    station.resume()
    station.run(f"cd /; {BARE}", timeout_s=120)
    said = station.run("silvasonic-controller setup --yes --disk /dev/vdb </dev/null", timeout_s=300)
    report.equal("what setup warns of", [], [line for line in said.splitlines() if line.startswith("!!")])
    station.wait_calm()
    owner = station.plug()["owner"]
    station.until("a file grows", GROWS.format(WORKSPACE))
    report.equal("device of the recordings", "/dev/vdb", station.run(f"findmnt -n -o SOURCE -T {WORKSPACE}").strip())
    redis = f"REDISCLI_AUTH=$(sed -n 's|^SILVASONIC_REDIS_URL=redis://:\\(.*\\)@.*|\\1|p' {SETTINGS}) redis-cli"
    report.at_most("a heartbeat of the Recorder reaches Redis", 30, station.until("its heartbeat", f"{redis} exists silvasonic:status:{ULTRAMIC} | grep -qx 1"))
    said = station.run("silvasonic-controller setup --yes </dev/null", timeout_s=300)
    report.equal("what setup does the second time", [], [line for line in said.splitlines() if line.startswith(("->", "!!"))])

    # The database and Redis keep their passwords when the settings go.
    station.run("dpkg --purge silvasonic-controller; dpkg -i /root/package.deb", timeout_s=120)
    said = station.run("silvasonic-controller setup --yes --disk /dev/vdb </dev/null", timeout_s=300)
    report.equal("what setup warns of after a purge", [], [line for line in said.splitlines() if line.startswith("!!")])
    report.at_most("a heartbeat of the next Recorder", 60, station.until("its heartbeat", f"{redis} exists silvasonic:status:{ULTRAMIC} | grep -qx 1"))
    station.until("the Controller is well", "silvasonic-controller health")
    owner = station.probe("frames", 60)["owner"]

    station.until("the Controller sees frames", RECORDS)
    before, pid = station.stream(), station.pid()
    station.run("dpkg -i /root/package.deb", timeout_s=120)
    station.until_another(pid)
    station.until("the Controller sees frames after the upgrade", RECORDS)
    now = station.stream()
    report.equal("the Recorder still runs after an upgrade", owner, station.probe("frames", 60)["owner"])
    report.at_most("frames lost by the upgrade", 1, now[0] - before[0] - (now[1] - before[1]) / RATE)

    # What waits for the network waits for two minutes. A journal on the disk tells how the station went down.
    station.run("systemctl unmask systemd-networkd-wait-online; systemctl enable systemd-networkd-wait-online;"
                "mkdir -p /var/log/journal; journalctl --flush")
    station.guest.network = False
    station.until("Podman has ended, as nobody asks it", "! systemctl -q is-active podman.service")
    station.guest.reboot()
    frames_after_boot(station, report)
    shut_down(station, report)
    report.equal("device of the recordings", "/dev/vdb", station.run(f"findmnt -n -o SOURCE -T {WORKSPACE}").strip())
    station.until("the Controller is well", "silvasonic-controller health")


def rootless(station, report):
    """A user without root types the commands of the manual and records, also after a kill and a reboot."""
    station.resume()
    station.run(f"systemctl disable --now podman.socket; useradd -m {USER}; echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}")
    for line in block("Without root"):
        as_user(station, line)  # each in a login of its own
        if "linger" in line:
            station.until("the user's systemd is there", f"[ -S /run/user/$(id -u {USER})/bus ]")
    station.until("the Controller runs", "pidof silvasonic-controller")
    owner = station.plug()["owner"]
    station.until("a file grows", GROWS.format(f"/home/{USER}/silvasonic/recorder"))
    report.equal("user of the Recorder", USER, station.run(f"stat -c %U /proc/{owner}").strip())
    for file, limit in (("memory.max", str(512 << 20)), ("cpu.max", "100000 100000")):
        found = station.control_group(owner, file)
        told = station.run(f"journalctl -b _COMM=silvasonic-cont -o cat | grep -c '{file.split('.', maxsplit=1)[0]}.* instead of' || true").strip()
        report.equal(f"{file}, or a warning", True, found == limit or told != "0")
    pid = station.pid()
    station.run(f"kill -KILL {pid}")
    station.until_another(pid)
    report.equal("the Recorder still runs", owner, station.probe("frames", 60)["owner"])
    station.guest.reboot()
    frames_after_boot(station, report)


def quadlet(station, report):
    """The Controller is a container that systemd runs, by the commands of the manual; Podman of Debian 12 is too old for that."""
    if station.guest.suite == "bookworm":
        return
    station.resume()
    for name in (".env.example", "packaging/silvasonic-controller.container"):
        station.guest.copy(f"{PROJECT}/{name}", f"/root/project/{name}")
    station.guest.copy(f"{station.guest.images}/controller.oci.tar", "/root/image.tar")
    # What the guests have prepared already, and the settings that differ here.
    station.run("rm -r /mnt/data /etc/modules-load.d/silvasonic.conf; podman network rm silvasonic-net; modprobe -r snd-usb-audio; cd /root/project;"
                "printf 'SILVASONIC_%s\\n' DB_HOST=host.containers.internal REDIS_URL=redis://host.containers.internal:6379/0 >> .env.example")
    # Both servers listen in the network of the containers.
    station.run("cd /; echo host all all 10.0.0.0/8 scram-sha-256 >> $(echo /etc/postgresql/*/main/pg_hba.conf);"
                "runuser -u postgres -- psql -qc \"alter system set listen_addresses = '*'\"; systemctl restart postgresql;"
                "redis-cli config set bind '*'; redis-cli config set protected-mode no; podman load -q -i /root/image.tar", timeout_s=120)
    for line in block("As a container of systemd"):
        station.run(f"cd /root/project; {line}", timeout_s=200)
    station.until("the Controller is well", "podman exec silvasonic-controller /silvasonic-controller health")
    report.equal("user of the Recorder", "root", station.run(f"stat -c %U /proc/{station.plug()['owner']}").strip())
    station.until("the Controller sees frames", "podman exec silvasonic-controller /silvasonic-controller devices | grep -q ' recording since '")
    begun = time.monotonic()
    station.run("systemctl stop silvasonic-controller", timeout_s=60)
    report.at_most("service to stopped", 20, time.monotonic() - begun)
    report.equal("containers that are left", "", station.run("podman ps -aq").strip())
    report.equal("whether it had to be killed", "0", station.run("journalctl -b -u silvasonic-controller -o cat | grep -c SIGKILL || true").strip())


def block(heading):
    """The commands below a heading of the installation manual."""
    with open(f"{PROJECT}/docs/install.md", encoding="utf-8") as file:
        section = file.read().split(f"\n## {heading}\n")[1]
    return section.split("\n```sh\n")[1].split("\n```\n")[0].splitlines()


def as_user(station, command):
    """Runs a command as the user without root."""
    environment = f"XDG_RUNTIME_DIR=/run/user/$(id -u {USER}) USER={USER}"
    return station.run(f"cd /; runuser -u {USER} -- env {environment} sh -c '{command}'", timeout_s=200)


def shut_down(station, report):
    """Reports how the Controller ended before the last boot: in far less time than it may take, and knowing of its Recorders.
    Redis and PostgreSQL may end before it."""
    lines = station.run(f"journalctl -b -1 -u {UNIT} -o short-unix --no-pager").splitlines()
    begun, ended = (max(index for index, line in enumerate(lines) if f": {word} {UNIT}" in line) for word in ("Stopping", "Stopped"))
    seconds = [float(lines[index].split()[0]) for index in (begun, ended)]
    report.at_most("host shuts down to Controller stopped", 5, seconds[1] - seconds[0])
    faults = re.compile(r"\[ERROR\]|kill|timed out|failed", re.IGNORECASE)
    report.equal("what it could not do meanwhile", [], [line.split(": ", 1)[1] for line in lines[begun:] if faults.search(line)])


def frames_after_boot(station, report):
    """Reports when frames come after a boot."""
    station.probe("frames", 200)
    frames = float(station.run("cut -d' ' -f1 /proc/uptime"))
    station.until("the boot is complete", "systemctl is-active multi-user.target")
    booted = int(station.run("systemctl show -p ActiveEnterTimestampMonotonic --value multi-user.target")) / 1e6
    report.at_most("multi-user to frames", 8, frames - booted)
