"""The scenarios: each gets a station of its own and reports what it has measured.

Limits that depend on the speed of the machine contain Podman's own time, measured in the same guest.
"""

# The time limit of captures that stand still, in the scenarios that wait for it.
TIMEOUT_S = 20
RECORDS = "silvasonic-controller devices | grep -q ' recording since '"
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
    podman = station.measure_podman()
    owner = station.plug()["owner"]
    station.until("the Controller sees frames", RECORDS)
    handle = station.begin_probe("frames", 300, owner)
    station.run(f"kill -STOP {owner}")
    # Podman stops one container and starts another.
    report.at_most("frozen to frames again", TIMEOUT_S + 15 + 2 * podman, station.end_probe(handle)["seconds"])
    station.until("the gap is in the ledger", "silvasonic-controller history | grep -q gap:")
    report.equal("cause of the gap", ["stalled"], gaps(station.history()))


def gaps(parts):
    """The causes of all gaps."""
    return [part["cause"] for part in parts if part["kind"] == "gap"]


SCENARIOS = {function.__name__: function for function in (plug, frozen)}
