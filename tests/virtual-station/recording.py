"""Scenarios of the Recorder that records."""

import json

FOLDER = "/mnt/data/workspace/recorder/ultramic-384-evo-6a21"
SEGMENT = 15 * 384000


def records(station, report):
    """The tone of the microphone is in its files without a break, also from file to file, up to the moment at which it is unplugged.
    It sends at half its rate, as an emulated guest is often too late to fetch all packets at the full one."""
    station.start()
    station.guest.plug("m1", "ultramic", "1", pace=0.5)
    station.until("two files", f'[ "$(ls {FOLDER}/data/raw | wc -l)" -ge 2 ] && find {FOLDER}/.buffer/raw -size +1500k | grep -q .', 300)
    # Longer than the kernel's buffer, which has a second; and not in the first second of a file, which would go on.
    station.run("kill -STOP $(pidof silvasonic-recorder); sleep 4; kill -CONT $(pidof silvasonic-recorder)")
    station.until("the next file", f"grep -q 'Missing At' {FOLDER}/.buffer/raw/*.wav || [ \"$(ls {FOLDER}/data/raw | wc -l)\" -ge 4 ]", 300)
    station.guest.unplug("m1")
    station.until("the Recorder is removed", '[ -z "$(podman ps -aq)" ]')
    found = json.loads(station.run(f"tone {FOLDER}", timeout_s=300))
    overruns, missing = found["told"]
    report.equal("frames of the first two files", [SEGMENT, SEGMENT], found["frames"][:2])
    dropped = station.guest.dropped()
    report.equal(f"breaks of the tone, without {dropped} of the emulation", 0, max(0, found["breaks"] - dropped))
    report.at_most("the tone is off, by FFT of each file", found["bin"], found["off"], "Hz")
    report.equal("overruns, as a file tells", 1, overruns)
    report.at_most("frames missing, as a file tells", 20 * 384, missing / 1000, "thousand")
    report.equal("whether frames are missing", True, missing > 384000)
    report.equal("files with a wrong length", 0, found["wrong"])
    report.equal("unfinished files", 0, found["unfinished"])
