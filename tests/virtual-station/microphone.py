"""Emulated USB microphones (USB Audio Class 1), which QEMU presents to the guest as real devices.

A microphone listens at a Unix socket and speaks the usbredir protocol, the language of QEMU's device `usb-redir`. Its
descriptors, strings and rates are free, and it can stop sending while it stays connected.
"""

import math
import os
import socket
import struct
import threading
import time

# Fields: vid, pid, manufacturer, product, serial, captures and playbacks as (channels, bits, rate).
KINDS = {
    "ultramic": {"vid": 0x0869, "pid": 0x0389, "manufacturer": "Dodotronic", "product": "UltraMic384K_EVO 16bit r4",
                 "serial": "034F6A21", "captures": [(1, 16, 384000)]},
    "rode": {"vid": 0x19F7, "pid": 0x0003, "manufacturer": "RODE Microphones", "product": "RODE NT-USB",
             "captures": [(2, 16, 48000)], "playbacks": [(2, 16, 48000)]},
    "speaker": {"vid": 0x046D, "pid": 0x0A4D, "manufacturer": "Logitech", "product": "USB Speaker",
                "captures": [], "playbacks": [(2, 16, 48000)]},
}

# Frames of one period of the tone. A prime number, so that no packet holds whole periods: a loss of packets, or of any
# number of frames that is no multiple of it, breaks the tone.
PERIOD = 127
AUDIO, CONTROL, STREAMING = 1, 1, 2
CLASS_INTERFACE, CLASS_ENDPOINT = 0x24, 0x25


def descriptor(kind, layout, *fields):
    """A descriptor begins with its length and its kind."""
    body = struct.pack("<" + layout, *fields)
    return bytes([len(body) + 2, kind]) + body


class Device:
    """Descriptors, control requests and samples: everything but the transport."""

    def __init__(self, vid, pid, manufacturer=None, product=None, serial=None, captures=(), playbacks=()):
        self.vid, self.pid = vid, pid
        self.strings = [None]
        names = [self._string_index(text) for text in (manufacturer, product, serial)]
        self.device_descriptor = descriptor(1, "HBBBBHHHBBBB", 0x0110, 0, 0, 0, 64, vid, pid, 0x0100, *names, 1)
        self.endpoints = {}  # address -> (interface, size of a packet, bytes of one frame, rate)
        self.units = set()  # feature units, which answer requests for volume and mute
        streams = [("in", *stream) for stream in captures] + [("out", *stream) for stream in playbacks]
        self.interfaces = len(streams) + 1
        self.configuration, self.settings = 0, {}
        self.configuration_descriptor = self._configure(streams)

    def _string_index(self, text):
        if text is None:
            return 0
        self.strings.append(text)
        return len(self.strings) - 1

    def _configure(self, streams):
        units, interfaces = b"", b""
        for interface, (direction, channels, bits, rate) in enumerate(streams, 1):
            terminal = 3 * interface - 2
            unit, output = terminal + 1, terminal + 2
            outside, usb = (0x0201 if direction == "in" else 0x0301), 0x0101
            source, sink = (outside, usb) if direction == "in" else (usb, outside)
            layout = 0 if channels == 1 else (1 << channels) - 1
            units += descriptor(CLASS_INTERFACE, "BBHBBHBB", 2, terminal, source, 0, channels, layout, 0, 0)
            units += descriptor(CLASS_INTERFACE, f"BBBBB{channels + 1}x", 6, unit, terminal, 1, 3)
            units += descriptor(CLASS_INTERFACE, "BBHBBB", 3, output, sink, 0, unit, 0)
            self.units.add(unit)
            frame = channels * bits // 8
            size = rate // 1000 * frame
            assert rate % 1000 == 0 and size <= 1023, f"{rate} Hz do not fit into one packet a millisecond"
            address = (0x80 if direction == "in" else 0) | interface
            self.endpoints[address] = (interface, size, frame, rate)
            interfaces += descriptor(4, "BBBBBBB", interface, 0, 0, AUDIO, STREAMING, 0, 0)
            interfaces += descriptor(4, "BBBBBBB", interface, 1, 1, AUDIO, STREAMING, 0, 0)
            interfaces += descriptor(CLASS_INTERFACE, "BBBH", 1, output if direction == "in" else terminal, 1, 1)
            interfaces += descriptor(CLASS_INTERFACE, "BBBBBB3s", 2, 1, channels, bits // 8, bits, 1, struct.pack("<I", rate)[:3])
            interfaces += descriptor(5, "BBHBBB", address, 5 if direction == "in" else 9, size, 1, 0, 0)
            interfaces += descriptor(CLASS_ENDPOINT, "BBBH", 1, 1, 0, 0)
        numbers = bytes(range(1, len(streams) + 1))
        header_size = 8 + len(numbers)
        header = bytes([header_size, CLASS_INTERFACE])
        header += struct.pack("<BHHB", 1, 0x0100, header_size + len(units), len(numbers)) + numbers
        body = descriptor(4, "BBBBBBB", 0, 0, 0, AUDIO, CONTROL, 0, 0) + header + units + interfaces
        return descriptor(2, "HBBBBB", 9 + len(body), self.interfaces, 1, 0, 0x80, 50) + body

    def _string(self, index):
        if index == 0:
            return descriptor(3, "H", 0x0409)
        if index >= len(self.strings):
            return None
        text = self.strings[index].encode("utf-16-le", "surrogatepass")[:252]
        return bytes([len(text) + 2, 3]) + text

    def control(self, kind, request, value, index, length):
        """Answers a control request: bytes, or None for a stall."""
        if kind & 0x60 == 0:
            answer = self._standard(request, value, index)
        elif kind & 0x60 == 0x20:
            answer = self._audio(kind, request, value, index)
        else:
            answer = None
        return answer if answer is None else answer[:length]

    def _standard(self, request, value, index):
        if request == 6:
            texts = {1: self.device_descriptor, 2: self.configuration_descriptor, 3: self._string(value & 0xFF)}
            return texts.get(value >> 8)
        if request == 9:
            self.configuration, self.settings = value, {}
        elif request == 11:
            self.settings[index & 0xFF] = value
        answers = {0: b"\0\0", 8: bytes([self.configuration]), 10: bytes([self.settings.get(index & 0xFF, 0)])}
        return answers.get(request, b"" if request in (1, 3, 9, 11) else None)

    def _audio(self, kind, request, value, index):
        selector, is_read = value >> 8, bool(kind & 0x80)
        if kind & 0x1F == 2 and selector == 1:  # the rate of an endpoint, which is fixed
            rate = self.endpoints.get(index & 0xFF, (0, 0, 0, 48000))[3]
            return struct.pack("<I", rate)[:3] if is_read else b""
        if kind & 0x1F == 1 and index >> 8 in self.units:
            if not is_read:
                return b""
            volume = {0x81: 0, 0x82: -0x2000, 0x83: 0x1000, 0x84: 0x100}
            return b"\0" if selector == 1 else struct.pack("<h", volume.get(request, 0))
        return None

    def active(self):
        """The endpoints of interfaces that stream."""
        return {address: end for address, end in self.endpoints.items() if self.settings.get(end[0], 0) == 1}

    def packets(self, address):
        """Packets of one millisecond each, to be sent one after the other and again: a sine at -12 dB that has no break."""
        _, size, frame, _ = self.endpoints[address]
        samples = (int(math.sin(2 * math.pi * at / PERIOD) * 8191) for at in range(PERIOD))
        period = b"".join(struct.pack("<h", sample) * (frame // 2) for sample in samples)
        tone = period * (size // frame)
        return [tone[at:at + size] for at in range(0, len(tone), size)]


# Types of messages of the usbredir protocol.
HELLO, DEVICE_CONNECT, RESET, INTERFACES, ENDPOINTS = 0, 1, 3, 4, 5
SET_CONFIGURATION, GET_CONFIGURATION, CONFIGURATION_STATUS = 6, 7, 8
SET_SETTING, GET_SETTING, SETTING_STATUS = 9, 10, 11
START_STREAM, STOP_STREAM, STREAM_STATUS = 12, 13, 14
CONTROL_PACKET, ISO_PACKET = 100, 102
# connect_device_version, ep_info_max_packet_size, 64bits_ids, 32bits_bulk_length: what QEMU's xHCI requires
CAPABILITIES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6
FULL_SPEED = 1
# QEMU keeps 120 packets and drops half of them if there are more. So a slow microphone that is late does not send more than
# this at once.
SLOW_BURST = 30


class Microphone:
    """A device at a Unix socket, on threads of this process. It sends `pace` packets a millisecond."""

    def __init__(self, path, kind, pace=1, **overrides):
        self.fields = {**KINDS[kind], **overrides}
        self.path, self.pace = path, pace
        self.sends = threading.Event()
        self.sends.set()
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self.listener.bind(path)
        self.listener.listen(1)
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self):
        """Sends no samples any more; the device stays connected."""
        self.sends.clear()

    def flow(self):
        """Sends samples again."""
        self.sends.set()

    def close(self):
        """Ends the threads. The device must be unplugged."""
        self.listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            Session(connection, Device(**self.fields), self.sends, self.pace).run()


class Session:
    """One connection of QEMU."""

    def __init__(self, connection, device, sends, pace):
        self.connection, self.device, self.sends, self.pace = connection, device, sends, pace
        self.lock = threading.Lock()
        self.streams = {}  # endpoint -> event that ends its thread
        self.header = "<III"

    def run(self):
        """Answers until QEMU closes the connection."""
        try:
            self._send(HELLO, 0, b"silvasonic station test".ljust(64, b"\0") + struct.pack("<I", CAPABILITIES))
            while True:
                kind, length, ident = struct.unpack(self.header, self._receive(struct.calcsize(self.header)))
                self._handle(kind, ident, self._receive(length))
        except OSError:
            pass
        for endpoint in list(self.streams):
            self._stop(endpoint)
        self.connection.close()

    def _send(self, kind, ident, body=b""):
        with self.lock:
            self.connection.sendall(struct.pack(self.header, kind, len(body), ident) + body)

    def _receive(self, size):
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise ConnectionError("QEMU has closed the connection")
            data += part
        return data

    def _handle(self, kind, ident, body):
        device = self.device
        if kind == HELLO:
            if struct.unpack("<I", body[64:68])[0] & 1 << 5:
                self.header = "<IIQ"
            self._tell_endpoints()
            self._tell_interfaces()
            self._send(DEVICE_CONNECT, 0, struct.pack("<BBBBHHH", FULL_SPEED, 0, 0, 0, device.vid, device.pid, 0x0100))
        elif kind == RESET:
            for endpoint in list(self.streams):
                self._stop(endpoint)
            device.settings = {}
        elif kind == SET_CONFIGURATION:
            device.configuration, device.settings = body[0], {}
            self._tell_endpoints()
            self._tell_interfaces()
            self._send(CONFIGURATION_STATUS, ident, bytes([0, body[0]]))
        elif kind == GET_CONFIGURATION:
            self._send(CONFIGURATION_STATUS, ident, bytes([0, device.configuration]))
        elif kind == SET_SETTING:
            device.settings[body[0]] = body[1]
            self._tell_endpoints()
            self._tell_interfaces()
            self._send(SETTING_STATUS, ident, bytes([0, body[0], body[1]]))
        elif kind == GET_SETTING:
            self._send(SETTING_STATUS, ident, bytes([0, body[0], device.settings.get(body[0], 0)]))
        elif kind == START_STREAM:
            self._stop(body[0])
            self._send(STREAM_STATUS, ident, bytes([0, body[0]]))
            if body[0] & 0x80:
                stop = self.streams[body[0]] = threading.Event()
                threading.Thread(target=self._stream, args=(body[0], stop), daemon=True).start()
        elif kind == STOP_STREAM:
            self._stop(body[0])
            self._send(STREAM_STATUS, ident, bytes([0, body[0]]))
        elif kind == CONTROL_PACKET:
            self._answer(ident, body)

    def _answer(self, ident, body):
        endpoint, request, kind, _, value, index, length = struct.unpack("<BBBBHHH", body[:10])
        answer = self.device.control(kind, request, value, index, length)
        stalled = 4
        status, data = (stalled, b"") if answer is None else (0, answer)
        is_read = bool(kind & 0x80)
        moved = len(data) if is_read else length * (answer is not None)
        head = struct.pack("<BBBBHHH", endpoint, request, kind, status, value, index, moved)
        self._send(CONTROL_PACKET, ident, head + (data if is_read else b""))

    def _tell_endpoints(self):
        """The type, interval, interface and packet size of each of the 32 possible endpoints."""
        kinds, intervals, interfaces, sizes = [255] * 32, [0] * 32, [0] * 32, [0] * 32
        kinds[0] = kinds[16] = 0
        sizes[0] = sizes[16] = 64
        for address, (interface, size, _, _) in self.device.active().items():
            at = (address & 0x80) >> 3 | address & 15
            kinds[at], intervals[at], interfaces[at], sizes[at] = 1, 1, interface, size
        self._send(ENDPOINTS, 0, bytes(kinds + intervals + interfaces) + struct.pack("<32H", *sizes))

    def _tell_interfaces(self):
        count = self.device.interfaces

        def padded(numbers):
            return bytes(numbers).ljust(32, b"\0")

        subclasses = [CONTROL] + [STREAMING] * (count - 1)
        body = padded(range(count)) + padded([AUDIO] * count) + padded(subclasses) + padded([])
        self._send(INTERFACES, 0, struct.pack("<I", count) + body)

    def _stop(self, endpoint):
        stop = self.streams.pop(endpoint, None)
        if stop:
            stop.set()

    def _stream(self, endpoint, stop):
        """Sends packets. The tone goes on with each that is sent, whether or not it is late."""
        bodies = [struct.pack("<BBH", endpoint, 0, len(packet)) + packet for packet in self.device.packets(endpoint)]
        begun, sent, ident = time.monotonic(), 0, 0
        try:
            while not stop.wait(0.004):
                due = int((time.monotonic() - begun) * 1000 * self.pace) + 1
                if not self.sends.is_set():
                    sent = due
                if self.pace < 1:
                    sent = max(sent, due - SLOW_BURST)
                while sent < due:
                    self._send(ISO_PACKET, ident, bodies[ident % PERIOD])
                    ident, sent = (ident + 1) & 0xFFFFFFFF, sent + 1
        except OSError:
            pass
