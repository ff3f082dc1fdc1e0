"""A station: a guest in which the package is installed, with the questions that the scenarios ask."""

import io
import json
import os
import sys
import tarfile
import time

from guest import Guest, GuestError

PROJECT = os.path.realpath(os.path.dirname(__file__) + "/../..")
PREPARE = f"{PROJECT}/tests/virtual-station/guest/prepare"
PACKAGE = "silvasonic-controller.deb"
UNIT = "silvasonic-controller.service"
SETTINGS = "/etc/silvasonic/controller.env"
ULTRAMIC = "0869-0389-034F6A21"


def image(program):
    """An image with one static program, as a tar archive of its files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(f"{PROJECT}/packaging/image", arcname=".")
        archive.add(program, arcname="./program", filter=executable)
    return data.getvalue()


def executable(entry):
    """Who builds the project may run programs that others may not."""
    entry.uid = entry.gid = 0
    entry.mode = 0o755
    return entry


def prepare(images, suite, folder):
    """Boots the disk of a suite, installs the package, and saves the state, if that is missing or old."""
    guest = Guest(images, suite, folder)
    state = guest.path(".ready.state")
    sources = (guest.path(".ext4"), f"{images}/{PACKAGE}", PREPARE)
    if os.path.exists(state) and os.path.getmtime(state) > max(map(os.path.getmtime, sources)):
        return
    print(f"station-test: {suite}: boots, installs the package, and saves its state", file=sys.stderr, flush=True)
    try:
        guest.disk = guest.path(".ready.qcow2")
        guest.new_disk(guest.path(".ext4"), "raw")
        guest.boot()
        guest.copy(f"{images}/{PACKAGE}", "/root/package.deb")
        with open(PREPARE, encoding="utf-8") as file:
            guest.run(file.read(), timeout_s=600)
        guest.save()
    finally:
        guest.stop()


class Station:
    """A guest with a running Controller."""

    def __init__(self, images, suite, folder):
        self.guest = Guest(images, suite, folder)
        self.recorder = f"{images}/recorder"

    # --- life

    def start(self, recorder=None, **settings):
        """Starts the Controller; `recorder` is the program in the Recorder image, if it is not that of the package."""
        self.resume()
        if recorder:
            self.guest.put("/root/image.tar", image(recorder))
            self.guest.run("podman import -q --change 'ENTRYPOINT [\"/program\"]' --change 'ENV PATH=/' /root/image.tar"
                           " localhost/silvasonic_recorder:latest; rm /root/image.tar", timeout_s=200)
        lines = [f"SILVASONIC_{name.upper()}={value}\n" for name, value in settings.items()]
        self.guest.put(SETTINGS, "".join(lines).encode(), 0o600)
        self.guest.run(f"systemctl enable --now {UNIT}", timeout_s=120)
        self.wait_calm()

    def resume(self):
        """Continues after the installation of the package, which has started nothing."""
        self.guest.resume()
        for name in ("probe", "tone"):
            self.guest.copy(f"{PROJECT}/tests/virtual-station/guest/{name}", f"/usr/local/sbin/{name}", 0o755)

    def measure_podman(self):
        """Podman's own time from a new card until frames arrive, which depends on the machine. The Controller is stopped
        meanwhile."""
        self.run(f"systemctl stop {UNIT}")
        handle = self.begin_probe("podman", 120, *self.probe("cards"))
        self.guest.plug("measured", "ultramic", "7")
        seconds = self.end_probe(handle)["seconds"]
        self.guest.unplug("measured")
        self.until("the card is gone", "! grep -q ': USB-Audio' /proc/asound/cards")
        self.run(f"systemctl start {UNIT}")
        self.wait_calm()
        return seconds

    def wait_calm(self):
        """Waits until the Controller is ready, and does not hash a password any more."""
        self.until("the Controller is ready", "silvasonic-controller health && sleep 1 &&"
                   " ! grep -qx bcrypt /proc/$(pidof silvasonic-controller)/task/*/comm")

    # --- questions

    def run(self, command, timeout_s=60):
        """Runs a command in the guest. Those of the Controller find Podman's socket."""
        return self.guest.run(f"export SILVASONIC_CONTAINER_SOCKET=/run/podman/podman.sock; {command}", timeout_s)

    def until(self, what, condition, timeout_s=120):
        """Waits until a shell command succeeds. Returns how long it took."""
        uptime = "$(cut -d. -f1 /proc/uptime)"
        loop = f"end=$(({uptime} + {timeout_s})); until {{ {condition}; }} >/dev/null 2>&1; do sleep 0.2; [ {uptime} -lt $end ] || exit 1; done"
        begun = time.monotonic()
        try:
            self.run(loop, timeout_s + 60)
        except GuestError:
            raise GuestError(f"{what}: not within {timeout_s} s\n{self.log()[-3000:]}") from None
        return time.monotonic() - begun

    def pid(self):
        """The process of the Controller."""
        return self.run("pidof silvasonic-controller").strip()

    def until_another(self, pid, timeout_s=120):
        """Waits until another process than this is the Controller. Returns how long it took."""
        found = "$(pidof silvasonic-controller)"
        return self.until("another Controller", f"[ -n \"{found}\" ] && [ \"{found}\" != {pid} ]", timeout_s)

    def begin_probe(self, *arguments):
        """Begins to measure."""
        return self.guest.begin("probe " + " ".join(map(str, arguments)), 1200)

    def end_probe(self, handle):
        """What was measured."""
        try:
            return json.loads(self.guest.finish(handle))
        except GuestError as error:
            raise GuestError(f"{error}\n{self.log()[-3000:]}") from None

    def probe(self, *arguments):
        """Measures."""
        return self.end_probe(self.begin_probe(*arguments))

    def plug(self, name="m1", kind="ultramic", port="1", timeout_s=120, **fields):
        """Connects a microphone and waits for its frames. Returns the times, and the process of the Recorder."""
        handle = self.begin_probe("plug", timeout_s, *self.probe("cards"))
        self.guest.plug(name, kind, port, **fields)
        return self.end_probe(handle)

    def stream(self, card=0):
        """The time since the boot and the frames of a stream."""
        text = self.run(f"cut -d' ' -f1 /proc/uptime; sed -n 's/^hw_ptr *: //p' /proc/asound/card{card}/pcm0c/sub0/status")
        seconds, frames = text.split()
        return float(seconds), int(frames)

    def control_group(self, process, file):
        """A limit of a process: of its own control group, or of the one above it."""
        own = f"/sys/fs/cgroup$(cut -d: -f3 /proc/{process}/cgroup)"
        return self.run(f"cd {own}; grep -qv ^max {file} || cd ..; cat {file}").strip()

    def log(self):
        """What the Controller has logged since the boot."""
        return self.run(f"journalctl -b -u {UNIT} -o cat --no-pager")

    def history(self, device=ULTRAMIC, since="1d"):
        """The parts of the history of a microphone."""
        microphones = json.loads(self.run(f"silvasonic-controller history --json --since {since}"))["microphones"]
        return [part for microphone in microphones if microphone["id"] == device for part in microphone["parts"]]
