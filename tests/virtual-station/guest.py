"""A guest: QEMU with a stock Debian, and microphones that are connected to it."""

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import time

from microphone import Microphone

MEMORY_MB = 2048
KERNEL = ("console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off audit=0 systemd.show_status=0"
          " systemd.unified_cgroup_hierarchy=1")


class GuestError(Exception):
    """The guest does not do what was expected."""


class Lines:
    """JSON lines over a Unix socket."""

    def __init__(self, path, deadline_s=20):
        self.buffer = b""
        deadline = time.monotonic() + deadline_s
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                return
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def write(self, value):
        """Sends one value."""
        self.socket.settimeout(60)
        self.socket.sendall((json.dumps(value) + "\n").encode())

    def read(self, timeout_s):
        """Receives one value."""
        self.socket.settimeout(timeout_s)
        while b"\n" not in self.buffer:
            data = self.socket.recv(1 << 16)
            if not data:
                raise GuestError("QEMU has ended")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)


class Guest:
    """One guest. `images` holds what was built for its suite, `folder` what belongs to this run."""

    def __init__(self, images, suite, folder):
        self.images, self.suite, self.folder = images, suite, folder
        self.disk, self.data = f"{folder}/disk.qcow2", f"{folder}/data.qcow2"
        self.microphones, self.network = {}, True
        self.process = self.monitor = self.agent = None
        self.numbers, self.answers = itertools.count(1), {}

    def path(self, name):
        """A file that was built for this suite."""
        return f"{self.images}/{self.suite}{name}"

    def new_disk(self, base, form):
        """Begins with the contents of `base`, and an empty second disk; changes go to files of this run."""
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", os.path.abspath(base), "-F", form, self.disk], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.data, "1G"], check=True)

    def _start(self, *arguments):
        drive, data = (f"file={path},format=qcow2,if=none,id={name},cache=writeback" for name, path in (("disk", self.disk), ("data", self.data)))
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
                   "-machine", "pc,usb=off,vmport=off", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,svm=off",
                   "-m", str(MEMORY_MB), "-smp", "2",
                   "-kernel", self.path(".vmlinux"), "-initrd", self.path(".initrd"), "-append", KERNEL,
                   "-drive", drive, "-device", "virtio-blk-pci,drive=disk",
                   "-drive", data, "-device", "virtio-blk-pci,drive=data",
                   "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci",
                   "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self.folder}/agent,server=on,wait=off",
                   "-device", "virtserialport,chardev=agent,name=silvasonic.agent",
                   "-device", "qemu-xhci,id=xhci,p2=8,p3=8",
                   "-serial", f"file:{self.folder}/console.log", "-qmp", f"unix:{self.folder}/monitor,server=on,wait=off"]
        for name in ("agent", "monitor"):
            if os.path.exists(f"{self.folder}/{name}"):
                os.unlink(f"{self.folder}/{name}")
        with open(f"{self.folder}/qemu.log", "ab") as log:
            # A process group of its own, so that Ctrl-C ends the test first.
            self.process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self.monitor = Lines(f"{self.folder}/monitor")
        except OSError as error:
            raise GuestError(f"QEMU does not start: {open(f'{self.folder}/qemu.log').read()}") from error
        self.monitor.read(20)
        self.ask("qmp_capabilities")

    def boot(self):
        """Boots, with the microphones connected from the beginning."""
        self._start()
        self.ask("set_link", name="net", up=self.network)
        for name, (_, port) in self.microphones.items():
            self._connect(name, port)
        self._wait()

    def resume(self):
        """Continues from the state that was saved after a boot."""
        self.new_disk(self.path(".ready.qcow2"), "qcow2")
        self._start("-incoming", f"file:{self.path('.ready.state')}")
        deadline = time.monotonic() + 60
        while self.ask("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise GuestError("the saved state cannot be loaded")
            time.sleep(0.05)
        self.ask("cont")
        self._wait()
        self.run(f"date -s @{time.time():.3f}")

    def save(self):
        """Saves the memory and ends QEMU; the disk holds the rest."""
        self.ask("stop")
        self.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 33})
        self.ask("migrate", uri=f"file:{self.path('.ready.state')}")
        while (status := self.ask("query-migrate"))["status"] not in ("completed", "failed"):
            time.sleep(0.1)
        if status["status"] == "failed":
            raise GuestError(f"the state cannot be saved: {status}")
        self.stop()

    def _wait(self):
        self.agent, self.answers = Lines(f"{self.folder}/agent"), {}
        self.run("true", timeout_s=300)

    def cut_power(self):
        """Ends QEMU as a power cut ends a computer: what the guest has not flushed to its disk is lost."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def reboot(self):
        """Restarts as a user would."""
        self.run("systemctl --no-block reboot")
        self.process.wait(timeout=120)
        self.boot()

    def stop(self):
        """Ends QEMU and the microphones."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for microphone, _ in self.microphones.values():
            microphone.close()
        self.microphones = {}

    # --- QEMU's monitor

    def ask(self, command, **arguments):
        """Runs a command of QEMU."""
        self.monitor.write({"execute": command, "arguments": arguments})
        while True:
            answer = self.monitor.read(30)
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def plug(self, name, kind, port, **fields):
        """Connects a microphone to a port, such as `1`, or `1.2` behind a hub at port 1."""
        microphone = Microphone(f"{self.folder}/{name}", kind, **fields)
        self.microphones[name] = (microphone, port)
        self._connect(name, port)
        return microphone

    def _connect(self, name, port):
        backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": f"{self.folder}/{name}"}}, "server": False}}
        self.ask("chardev-add", id=f"wire-{name}", backend=backend)
        # With the messages that say when packets are dropped.
        self.ask("device_add", driver="usb-redir", id=name, chardev=f"wire-{name}", bus="xhci.0", port=port, debug=4)

    def unplug(self, name):
        """Disconnects a microphone."""
        self.ask("device_del", id=name)
        deadline = time.monotonic() + 30
        while any(wire["label"] == f"wire-{name}" for wire in self.ask("query-chardev")):  # it goes with the device
            if time.monotonic() > deadline:
                raise GuestError(f"QEMU does not disconnect {name}")
            time.sleep(0.05)
        microphone, _ = self.microphones.pop(name)
        microphone.close()

    def dropped(self):
        """How often QEMU has dropped packets of microphones, as the guest did not fetch them in time."""
        with open(f"{self.folder}/qemu.log", encoding="utf-8", errors="replace") as log:
            return log.read().count("bufpq overflow")

    # --- the agent in the guest

    def begin(self, command, timeout_s=60):
        """Begins to run a shell command."""
        number = next(self.numbers)
        self.agent.write({"id": number, "run": command, "timeout": timeout_s})
        return command, number, timeout_s

    def finish(self, handle):
        """The output of a command that was begun. It must succeed."""
        command, number, timeout_s = handle
        while number not in self.answers:
            answer = self.agent.read(timeout_s + 60)
            self.answers[answer["id"]] = answer
        answer = self.answers.pop(number)
        if answer["code"]:
            raise GuestError(f"code {answer['code']}: {command[:300]}\n{answer['output'][-2000:]}")
        return answer["output"]

    def run(self, command, timeout_s=60):
        """Runs a shell command, which must succeed. Returns its output."""
        return self.finish(self.begin(command, timeout_s))

    def put(self, path, data, mode=0o644):
        """Writes a file."""
        number = next(self.numbers)
        self.agent.write({"id": number, "put": path, "data": base64.b64encode(data).decode(), "mode": mode})
        self.finish((f"put {path}", number, 60))

    def copy(self, source, path, mode=0o644):
        """Copies a file into the guest."""
        with open(source, "rb") as file:
            self.put(path, file.read(), mode)
