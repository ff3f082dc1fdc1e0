"""The scenarios: each gets a station of its own and reports what it has measured.

Limits that depend on the speed of the machine contain Podman's own time, measured in the same guest.
"""

import os
import random
import time
from datetime import datetime

# The time limit of captures that stand still, in the scenarios that wait for it.
TIMEOUT_S = 20
RATE = 384000
RECORDS = "silvasonic-controller devices | grep -q ' recording since '"
RECORDING = "silvasonic-controller devices | grep -c ' recording since '"
OPEN = "silvasonic-controller history | grep -q ', open'"
CLOSED = "! silvasonic-controller history | grep -q ', open'"
NO_CONTAINER = '[ -z "$(podman ps -aq)" ]'


class Report:
    """The rows of one scenario."""

    def __init__(self):
        self.rows = []

    def at_most(self, what, limit, measured, unit="s"):
        """Adds a row with an upper limit."""
        self.rows.append((what, f"<= {limit:.1f} {unit}", f"{measured:.1f} {unit}", measured <= limit))

    def equal(self, what, expected, found):
        """Adds a row with an expected value."""
        self.rows.append((what, str(expected), str(found), found == expected))


def account(report, parts, begun, now):
    """Compares a history with the stream since an earlier look at it. Sessions and gaps are all of the time. On a busy machine
    the emulation loses frames, which are gaps; without that, there is one session. Returns whether there is."""
    parts = parts[:-1] if parts[-1]["kind"] == "gap" else parts  # since the microphone was unplugged
    sessions = [part for part in parts if part["kind"] == "session"]
    lost = now[0] - begun[0] - (now[1] - begun[1]) / RATE
    if lost < 0.5:
        report.equal("parts of the history", ["session"], [part["kind"] for part in parts])
        report.at_most("frames of the stream that are not in the session", 10 * RATE, now[1] - sessions[0]["frames"], "frames")
    else:
        report.equal(f"causes of gaps other than the emulation, which has lost {lost:.0f} s", [], [cause for cause in gaps(parts) if cause != "stalled"])
    report.at_most("time that is neither a session nor a gap", 15, abs(sum(part["seconds"] for part in parts) - (now[0] - begun[0])))
    recorded, frames = (sum(part[key] for part in sessions) for key in ("seconds", "frames"))
    report.at_most("duration without frames, and frames without duration", 2 * len(sessions), abs(recorded - frames / RATE))
    return lost < 0.5


def plug(station, report):
    """From the new card to frames, compared with a program that does nothing but ask Podman."""
    station.start(station.recorder)
    podman, controller = [], []
    for _ in range(3):
        podman.append(station.measure_podman())
        controller.append(station.plug()["seconds"])
        station.guest.unplug("m1")
        station.until("the Recorder is removed", NO_CONTAINER)
    # The fastest ones: other programs of the machine make the others slower.
    report.at_most("plug to frames, the fastest of three", min(podman) + 2, min(controller))


def frozen(station, report):
    """A Recorder that is stopped by a signal: its process exists, but reads nothing any more."""
    station.start(station.recorder, capture_timeout_s=TIMEOUT_S)
    owner = station.plug()["owner"]
    station.until("the session is in the ledger", OPEN)
    handle = station.begin_probe("frames", 300, owner)
    station.run(f"kill -STOP {owner}")
    report.at_most("frozen to frames again", TIMEOUT_S + 15, station.end_probe(handle)["seconds"])
    station.until("the gap is in the ledger", "silvasonic-controller history | grep -q gap:")
    report.equal("cause of the gap", ["stalled"], gaps(station.history()))


def stalled(station, report):
    """A microphone that stops sending: all steps are taken, and it is recorded again when it sends."""
    station.start(station.recorder, capture_timeout_s=TIMEOUT_S, usb_reset="true")
    podman = station.measure_podman()
    station.plug()
    station.until("the Controller sees frames", RECORDS)
    microphone, _ = station.guest.microphones["m1"]
    microphone.stall()
    step = TIMEOUT_S + 15 + 2 * podman
    for number, (what, line) in enumerate((("replaced", "its Recorder is replaced"), ("replaced again", "its Recorder is replaced"),
                                           ("USB device authorised again", "its USB device is authorised again"))):
        count = f"[ $(journalctl -b -u silvasonic-controller -o cat | grep -c '{line}') -gt {number % 2} ]"
        report.at_most(f"no frames to {what}", step, station.until(what, count, 300))
    microphone.flow()
    report.at_most("sends to frames", 15 + podman, station.probe("frames", 120)["seconds"])
    station.until("the Controller sees frames again", RECORDS)


def power(station, report):
    """A power cut while a microphone is recorded."""
    station.start(station.recorder)
    station.plug()
    station.until("the session is in the ledger", OPEN)
    time.sleep(30)
    cut = float(station.run("date +%s.%N"))
    station.guest.cut_power()
    station.guest.boot()
    station.run(f"date -s @{time.time():.3f}")
    station.until("frames after the boot", RECORDS, 300)
    station.until("the gap is in the ledger", "silvasonic-controller history | grep -q 'gap: power or boot'")
    parts = station.history()
    index = [(part["kind"], part["cause"]) for part in parts].index(("gap", "power or boot"))
    session, gap = parts[index - 1:index + 1]
    report.equal("what ended with the power", "session", session["kind"])
    report.at_most("recorded, but not in the ledger", 15 * 60, cut - epoch(session["to"]))
    report.at_most("the gap begins before the power cut, and ends after it", 0, max(epoch(gap["from"]) - cut, cut - epoch(gap["to"])))
    report.equal("Recorders after the boot", 1, len(station.run("podman ps -q").split()))


def absent(station, report):
    """The Controller is killed and comes back after five minutes."""
    station.start(station.recorder)
    owner = station.plug()["owner"]
    station.until("the session is in the ledger", OPEN)
    before = station.stream()
    station.run("mkdir -p /run/systemd/system/silvasonic-controller.service.d; cd /run/systemd/system/silvasonic-controller.service.d;"
                "printf '[Service]\\nRestart=no\\n' > test.conf; systemctl daemon-reload; systemctl kill -s KILL silvasonic-controller")
    time.sleep(300)
    station.run("systemctl reset-failed silvasonic-controller; systemctl start silvasonic-controller")
    station.until("the Controller sees frames", RECORDS)
    report.equal("the Recorder still runs", owner, station.probe("frames", 60)["owner"])
    time.sleep(15)
    now = station.stream()
    station.guest.unplug("m1")
    station.until("the session is closed", CLOSED)
    account(report, station.history(), before, now)


def clock(station, report):
    """The clock is stepped by a year while a microphone is recorded, as at the first contact with a time server."""
    station.start(station.recorder)
    station.plug()
    station.until("the session is in the ledger", OPEN)
    before = station.stream()
    station.run("date -s '+1 year'")
    time.sleep(30)
    now = station.stream()
    station.guest.unplug("m1")
    station.until("the session is closed", CLOSED)
    parts = station.history()
    if account(report, parts, before, now):  # else the step may have been between two sessions
        report.at_most("difference between the step in the ledger and a year", 86400 + 60, abs(parts[0]["clock"]["stepped_s"] - 365 * 86400))


def limits(station, report):
    """What the kernel enforces for a Recorder."""
    station.start(station.recorder)
    owner = station.plug()["owner"]
    report.equal("oom_score_adj", "-999", station.run(f"cat /proc/{owner}/oom_score_adj").strip())
    for file, expected in (("memory.max", str(512 << 20)), ("cpu.max", "100000 100000")):
        report.equal(file, expected, station.control_group(owner, file))


def ports(station, report):
    """One microphone at another port and behind a hub, two that are alike, and one with hostile strings."""
    station.start(station.recorder)
    station.plug(port="1")
    station.guest.unplug("m1")
    station.until("the Recorder is removed", NO_CONTAINER)
    station.plug(port="2")
    station.guest.unplug("m1")
    station.until("the Recorder is removed", NO_CONTAINER)
    station.guest.ask("device_add", driver="usb-hub", id="hub", bus="xhci.0", port="4")
    station.plug(port="4.2")
    station.until("the microphone is recorded", RECORDS)
    devices = "runuser -u postgres -- psql -d silvasonic -Atc 'select count(*) from devices'"
    report.equal("rows of the microphone after three ports", "1", station.run(f"cd /; {devices}").strip())
    station.plug("twin1", "rode", "5")
    station.plug("twin2", "rode", "6")
    station.until("all three are recorded", f"[ $({RECORDING}) = 3 ]")
    report.equal("rows with two twins", "3", station.run(f"cd /; {devices}").strip())
    station.plug("evil", "ultramic", "4.3", serial="../../x\n1 [evil]: USB-Audio - \"'$(reboot)", product="\u202e\n\r%s/..")
    station.until("all four are recorded", f"[ $({RECORDING}) = 4 ]")
    report.equal("folders of the workspace", 4, len(station.run("ls -d /mnt/data/workspace/recorder/*/").split()))
    for name in list(station.guest.microphones):
        station.guest.unplug(name)
    station.until("all Recorders are removed", NO_CONTAINER)


def watchdog(station, report):
    """The Controller is frozen: systemd starts it again, and the Recorder runs on."""
    station.start(station.recorder)
    owner = station.plug()["owner"]
    pid = station.pid()
    station.run(f"kill -STOP {pid}")
    took = station.until_another(pid, 300)
    report.at_most("frozen to started again", 60 + 60, took)  # systemd waits for a core dump, too
    station.until("the Controller sees frames", RECORDS)
    report.equal("the Recorder still runs", owner, station.probe("frames", 60)["owner"])


def mount(station, report):
    """A disk is mounted over the workspace while a microphone is recorded."""
    station.start(station.recorder)
    owner = station.plug()["owner"]
    station.until("the Controller sees frames", RECORDS)
    station.run("mount -t tmpfs disk /mnt/data && mkdir -p /mnt/data/workspace/recorder")
    seen = station.until("health reports the disk", "silvasonic-controller health | grep -q '^workspace .*was mounted or unmounted'")
    report.at_most("mounted to reported", 60, seen)
    report.equal("the Recorder still runs", owner, station.probe("frames", 60)["owner"])
    station.run("umount /mnt/data")
    station.until("health is well again", "silvasonic-controller health | grep -q '^workspace .* ok '")


def cuts(station, report):
    """Power cuts at random instants of a plug, a creation and a replacement. The station comes back each time."""
    count = int(os.environ.get("CUTS", "10"))
    dice = random.Random(os.environ.get("SEED"))
    change = ("runuser -u postgres -- psql -qd silvasonic -c \"update microphone_profiles set config ="
              " jsonb_set(config, '{processing,gain_db}', to_jsonb(round(random() * 20)))\"; redis-cli publish silvasonic:nudge reconcile")
    station.start(station.recorder)
    station.plug()
    back = 0
    for number in range(count):
        station.until("the microphone is recorded", RECORDS, 400)
        event = ("plug", "creation", "replacement")[number % 3]
        if event == "plug":
            station.guest.unplug("m1")
            station.until("the Recorder is removed", NO_CONTAINER)
            station.guest.plug("m1", "ultramic", "1")
        else:
            station.run("cd /; podman rm -fa -t 0" if event == "creation" else f"cd /; {change}")
        time.sleep(dice.uniform(0, 8))
        station.guest.cut_power()
        station.guest.boot()
        station.run(f"date -s @{time.time():.3f}")
        station.until(f"frames after power cut {number + 1}, during a {event}", RECORDS, 400)
        back += 1
    report.equal("power cuts that the station came back from", count, back)
    report.equal("Recorders", 1, len(station.run("podman ps -q").split()))


def gaps(parts):
    """The causes of all gaps."""
    return [part["cause"] for part in parts if part["kind"] == "gap"]


def epoch(text):
    """A time of the history, in seconds since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


SCENARIOS = {function.__name__: function for function in (plug, frozen, stalled, power, absent, clock, limits, ports, watchdog, mount, cuts)}
