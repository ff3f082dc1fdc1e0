"""What the check of recorded files finds: run before the scenarios, as they rely on it."""

import json
import os
import struct
import subprocess
import sys
import tempfile

from microphone import KINDS, PERIOD, Device

TONE = f"{os.path.realpath(os.path.dirname(__file__))}/guest/tone"
RATE, PACKET = 384000, 384 * 2


def tone():
    """Plays the microphone's packets to the check, with and without faults."""
    device = Device(**KINDS["ultramic"])
    packets = device.packets(0x81) * 3
    sound = b"".join(packets)
    whole, half = len(packets), 200

    def join(*ranges):
        return b"".join(sound[begin * PACKET:end * PACKET] for begin, end in ranges)

    for what, expected, files in (
            ("a whole tone", 0, [("a", 0, sound)]),
            ("a whole tone in two files", 0, [("a", 0, join((0, half))), ("a", 1, join((half, whole)))]),
            ("a lost packet", 1, [("a", 0, join((0, half), (half + 1, whole)))]),
            ("a doubled packet", 1, [("a", 0, join((0, half), (half - 1, whole)))]),
            ("60 lost packets and a lost frame", 2, [("a", 0, join((0, 50), (110, half)) + join((half, whole))[2:])]),
            ("one wrong sample", 1, [("a", 0, sound[:70000] + b"\x01\x7f" + sound[70002:])]),
            ("silence at the beginning", 1, [("a", 0, bytes(4 * PACKET) + sound)]),
            ("a packet lost between files", 1, [("a", 0, join((0, half))), ("a", 1, join((half + 1, whole)))]),
            ("a packet lost between files, as the second one tells", 0, [("a", 0, join((0, half))), ("a", 1, join((half + 1, whole)), 0)]),
            ("a packet lost in a file, as it tells", 0, [("a", 0, join((0, half), (half + 1, whole)), half * 384)]),
            ("a packet lost by a new start", 0, [("a", 0, join((0, half))), ("b", 0, join((half + 1, whole)))])):
        found = check(files)
        assert found["breaks"] == expected, f"{what}: {found}"
        assert found["off"] <= found["bin"] and found["wrong"] == 0, f"{what}: {found}"
    for what, other in (("every second frame", b"".join(sound[at:at + 2] for at in range(0, len(sound), 4))), ("silence", bytes(len(sound)))):
        found = check([("a", 0, other)])
        assert found["off"] > 10 * found["bin"], f"{what}: {found}"
    assert check([("a", 0, sound)])["frames"] == [whole * 384] and whole == 3 * PERIOD


def check(files):
    """Writes files as a Recorder does. Returns what the check finds."""
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/data/raw")
        for second, (start, number, sound, *missing) in enumerate(files):
            text = "".join(f"Silvasonic|Overruns: 1\nSilvasonic|Missing Frames: 384\nSilvasonic|Missing At: {at}:384\n" for at in missing)
            head = b"RIFF" + struct.pack("<I", 4088 + len(sound)) + b"WAVEfmt " + struct.pack("<IHHII", 16, 1, 1, RATE, 2 * RATE)
            with open(f"{folder}/data/raw/2026-03-26T01-35-0{second}Z_1s_{start * 8}_{number:08}.wav", "wb") as file:
                file.write((head + b"\n" + text.encode()).ljust(4092, b"\0") + struct.pack("<I", len(sound)) + sound)
        return json.loads(subprocess.run([sys.executable, TONE, folder], stdout=subprocess.PIPE, check=True).stdout)
