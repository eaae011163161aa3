"""One connection as a state machine over bytes, for both roles, without any I/O.

    connection = ClientConnection(identity, relay_key)     or   RelayConnection(identity)
    transport.send(connection.handshake_bytes())           # whenever it returns something
    connection.receive(data)                               # bytes that arrived
    while (message := connection.next_message()) is not None:
        ...
    transport.send(connection.send(Join("weather")))       # frames, fragments and seals

Theory: bytes -> handshake acts, then records -> plaintext -> frames -> messages, in that order, each layer one
class. Both halves of the connection follow `wire.states.TRANSITIONS`. A protocol error is final: the method
raises `RemoteProtocolError` (their fault) or `LocalProtocolError` (ours), and the connection is dead.

Programs that queue frames by urgency (the relay, the client library) do not use `send`: they queue what
`messages.encode_frame` makes and `seal` it at departure, since sealed records cannot change their order.

This module does not know about time, sockets, randomness or logging.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from awesomeconnect.errors import (
    ErrorCode,
    HandshakeError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
)
from awesomeconnect.identity import Identity
from awesomeconnect.wire.fragments import Reassembler, is_fragmented, piece
from awesomeconnect.wire.framing import FRAME_OVERHEAD_BYTES, GREETING_FRAME_BYTES, LENGTH_BYTES, FrameReader
from awesomeconnect.wire.messages import (
    Anycast,
    Close,
    Deliver,
    Fragment,
    Hello,
    Message,
    Publish,
    Role,
    Send,
    Welcome,
    class_of,
    decode_body,
    deliver_prefix,
    encode_frame,
)
from awesomeconnect.wire.noise import (
    ACT1_BYTES,
    ACT2_BYTES,
    ACT3_BYTES,
    PREFACE,
    ClientHandshake,
    HandshakeResult,
    RelayHandshake,
)
from awesomeconnect.wire.records import MAX_PLAINTEXT, Opener, Sealer
from awesomeconnect.wire.states import TRANSITIONS, State

#: Payload limit until WELCOME names one, and the relay's default: the ancestor's block batches reach 900 kB.
DEFAULT_PAYLOAD_BYTES = 1_048_576

_FRAGMENTED = (Publish, Send, Anycast, Deliver)
_COUNTED = (Publish, Send, Anycast)


class Connection:
    """What both roles share. Use `ClientConnection` or `RelayConnection`.

    Attributes:
        reader: the frames of the other side's half; the relay binds flows to it.
        peer_key: the other side's proven Ed25519 key, once the handshake is over.
        ignored_bytes: of extension frames since the caller last set it to 0.
        most_ignored_bytes: `next_message` of a relay also returns None when they are more than this, so that a
            flood of them holds nobody up: set ``ignored_bytes`` to 0 and call it again. By default no limit.
        sent_ordinal: PUBLISH, SEND and ANYCAST sent with `send` (programs with queues of their own count
            themselves); ``reader.ordinal`` counts those received.
    """

    role: Role
    peer_role: Role

    __slots__ = (
        "_act_in",
        "_act_out",
        "_failed",
        "_opener",
        "_sealer",
        "fragments",
        "handshake_hash",
        "ignored_bytes",
        "local_state",
        "most_ignored_bytes",
        "peer_key",
        "reader",
        "remote_state",
        "sent_ordinal",
    )

    def __init__(self) -> None:
        self.reader = FrameReader()
        self.fragments = Reassembler(GREETING_FRAME_BYTES, self.reader.open_classes)
        self.local_state = State.HANDSHAKE
        self.remote_state = State.HANDSHAKE
        self.peer_key = b""
        self.handshake_hash = b""
        self.ignored_bytes = 0
        self.most_ignored_bytes: float = inf
        # SPEC sessions.md: A new connection MUST begin again with ordinal 1.
        self.sent_ordinal = 0
        self._act_in = b""
        self._act_out = b""
        self._failed = False
        self._opener: Opener | None = None
        self._sealer: Sealer | None = None

    @property
    def is_established(self) -> bool:
        """Whether both identities are proven."""
        return self._opener is not None

    def handshake_bytes(self) -> bytes:
        """The handshake act that is due, to be sent as it is; empty when none is."""
        act, self._act_out = self._act_out, b""
        return act

    def receive(self, data: bytes | memoryview) -> None:
        """Take bytes that arrived. The messages fed before must have been taken.

        Raises:
            HandshakeError: the other side failed to prove its identity. Close without a word.
            RemoteProtocolError: a record is malformed. Send CLOSE with its code.
            LocalProtocolError: the connection has failed before.
        """
        self._check_alive()
        try:
            if self._opener is None:
                data = self._receive_acts(bytes(data))
                if self._opener is None:
                    return
            plaintexts = self._opener.open(data)
        except RemoteProtocolError:
            self._failed = True
            raise
        if plaintexts:
            self.reader.feed(plaintexts)

    def _receive_acts(self, data: bytes) -> bytes:
        """Take handshake acts; returns what follows the last one."""
        data = self._act_in + data
        while self._opener is None:
            size = self._expected_act_bytes()
            if len(data) < size:
                self._check_beginning(data)
                break
            self._take_act(data[:size])
            data = data[size:]
        else:
            # SPEC handshake.md: A client MAY send records together with act 3.
            self._act_in = b""
            return data
        # SPEC handshake.md: A relay MUST NOT hold more than 512 bytes of a connection's input while it waits for
        #   the rest of act 1 or act 3.
        self._act_in = data
        return b""

    def next_message(self) -> Message | None:
        """The next message, or None when more bytes are needed.

        On the relay, frames of bound flows are not returned: they are in ``reader.touched``, and must be routed
        before the message that is returned, or the error that is raised, is acted upon.

        Raises:
            RemoteProtocolError: what came is not allowed, here or at all. Send CLOSE with its code.
            LocalProtocolError: the connection has failed before.
        """
        # SPEC frames.md: A receiver MUST NOT process anything that follows a frame that is too long, since it no
        #   longer knows where frames begin.
        self._check_alive()
        try:
            message = self._next_message()
            if message is None and self._opener is not None and self._opener.failure is not None:
                raise self._opener.failure  # what came before the bad record has been taken
        except RemoteProtocolError:
            self._failed = True
            raise
        return message

    def _check_alive(self) -> None:
        if self._failed:
            raise LocalProtocolError("the connection has failed before")

    def _next_message(self) -> Message | None:
        while (body := self.reader.gather()) is not None:
            message = self._decoded(body)
            if message is not None:
                return message
            if self.ignored_bytes > self.most_ignored_bytes:
                return None
        return None

    def _decoded(self, body: bytes) -> Message | None:
        """Decode a frame and judge it; None for a piece of a frame, and for a kind of the extension space."""
        # SPEC messages.md: A receiver MUST check a message completely before it changes any state because of it.
        message = decode_body(body, self.peer_role)
        if message is None:
            self.ignored_bytes += len(body)
            if self.remote_state is not State.OPEN:
                raise _unexpected(RemoteProtocolError, "an extension", self.peer_role, self.remote_state)
            return None
        # SPEC sessions.md: A side MUST judge a received message by the state of the sender's direction.
        self.remote_state = _step(self.peer_role, self.remote_state, message, RemoteProtocolError)
        if type(message) is Fragment:
            whole = self.fragments.add(message)
            if whole is None:
                return None
            # SPEC frames.md: A receiver MUST decode the inner frame only when the last chunk has arrived.
            # SPEC frames.md: A receiver MUST check a complete inner frame exactly as one that arrived whole.
            inner = decode_body(whole, self.peer_role)
            # SPEC frames.md: A receiver MUST answer an inner message of another kind than PUBLISH, SEND, ANYCAST
            #   and DELIVER with CLOSE protocol_error, or with CLOSE unexpected_message if the sender's role may not
            #   send that kind at all.
            # SPEC frames.md: A receiver MUST answer an inner PUBLISH, SEND, ANYCAST or DELIVER that the sender's
            #   role may not send with CLOSE unexpected_message.
            # SPEC frames.md: A receiver MUST answer an inner message whose class differs from that of its FRAGMENTs
            #   with CLOSE protocol_error.
            if not isinstance(inner, _FRAGMENTED) or inner.traffic_class != message.traffic_class:
                raise RemoteProtocolError("only an application message of the same class may travel in fragments")
            message = inner
        elif isinstance(message, _FRAGMENTED) and message.traffic_class in self.reader.open_classes:
            # SPEC frames.md: A receiver MUST answer a PUBLISH, SEND, ANYCAST or DELIVER frame of a class in which a
            #   fragmented frame is open with CLOSE protocol_error.
            raise RemoteProtocolError(
                f"a frame of class {message.traffic_class} inside a fragmented frame of that class"
            )
        # SPEC sessions.md: Both sides MUST count PUBLISH, SEND and ANYCAST messages of a connection together from
        #   1, in the order in which their last byte was sent.
        # SPEC sessions.md: A fragmented message MUST get its ordinal with its last FRAGMENT.
        # SPEC sessions.md: An aborted message MUST NOT get an ordinal.
        if isinstance(message, _COUNTED):
            self.reader.ordinal += 1
        elif type(message) is Close:
            # SPEC messages.md: A side that receives CLOSE MUST NOT process any frame that follows it.
            self.reader.forget()  # whatever follows is decoded, and refused by the state
        self._note(message)
        return message

    @property
    def sealer(self) -> Sealer:
        """Seals what this side sends, for programs that queue by urgency and use `seal_into`."""
        # SPEC handshake.md: A relay MUST NOT send a record before it has checked act 3.
        if self._sealer is None:
            raise LocalProtocolError("nothing can be sealed before the handshake is over")
        return self._sealer

    def seal(self, plaintext: bytes) -> bytes:
        """One record around at most `MAX_PLAINTEXT` bytes of frames. Send it before the next one is sealed."""
        return self.sealer.seal(plaintext)

    def send(self, *messages: Message) -> bytes:
        """The bytes that carry these messages, fragmented and sealed, in this order.

        Raises:
            LocalProtocolError: a message is not allowed in this state; nothing was changed or sealed.
        """
        state = self.local_state
        for message in messages:
            state = _step(self.role, state, message, LocalProtocolError)
        self.local_state = state
        frames: list[bytes] = []
        for message in messages:
            self.sent_ordinal += isinstance(message, _COUNTED)
            frames += _in_pieces(encode_frame(message), message)
        return b"".join(self.seal(plaintext) for plaintext in _packed(frames))

    def note_sent(self, message: Message) -> None:
        """Follow the state machine for a message that goes out by another way than `send`.

        Raises:
            LocalProtocolError: it is not allowed in this state.
        """
        self.local_state = _step(self.role, self.local_state, message, LocalProtocolError)

    def _expected_act_bytes(self) -> int:
        raise NotImplementedError

    def _take_act(self, act: bytes) -> None:
        raise NotImplementedError

    def _check_beginning(self, data: bytes) -> None:
        """Refuse what cannot become an act, before it is complete."""

    def _note(self, message: Message) -> None:
        """What a received message changes in this role."""

    def _established(self, result: HandshakeResult) -> None:
        self._sealer = Sealer(result.send_key)
        self._opener = Opener(result.receive_key)
        self.peer_key = result.peer_key
        self.handshake_hash = result.handshake_hash
        self.local_state = self.remote_state = State.GREETING

    def _set_payload_limit(self, payload_bytes: int) -> None:
        self.reader.payload_limit = payload_bytes
        self.reader.limit = self.fragments.limit = payload_bytes + FRAME_OVERHEAD_BYTES


class ClientConnection(Connection):
    """A node's side of a connection.

    Args:
        identity: proves who the node is.
        relay_key: the Ed25519 key that the relay must prove, from its address.

    Attributes:
        limits: the relay's limits, once WELCOME was received.
    """

    __slots__ = ("_handshake", "limits")
    role = Role.CLIENT
    peer_role = Role.RELAY

    def __init__(self, identity: Identity, relay_key: bytes) -> None:
        super().__init__()
        self.limits: Mapping[str, int] = {}
        self._handshake = ClientHandshake(identity, relay_key)
        # SPEC sessions.md: A client MUST send act 1 first and MUST NOT wait for any byte of the relay before it.
        self._act_out = self._handshake.act1()

    def _next_message(self) -> Message | None:
        # A DELIVER with a head seen before differs in its payload only: it needs no decoding.
        while (found := self.reader.next_frame()) is not None:
            template, data = found
            message = self._decoded(data) if template is None else template.with_payload(data)
            if message is not None:
                return message
        return None

    def _expected_act_bytes(self) -> int:
        return ACT2_BYTES

    def _take_act(self, act: bytes) -> None:
        # SPEC sessions.md: A client MUST NOT send act 3 to a relay that did not prove the pinned key.
        self._handshake.read_act2(act)
        self._act_out = self._handshake.act3()
        self._established(self._handshake.result)
        del self._handshake  # its chaining key would give the record keys away, those before a rekey too

    def _note(self, message: Message) -> None:
        if type(message) is Welcome:
            self.limits = message.limits
            # SPEC messages.md: A client MUST use payload_bytes + 1,024 as frame_bytes, whatever WELCOME says.
            self._set_payload_limit(message.limits.get("payload_bytes", DEFAULT_PAYLOAD_BYTES))
        elif type(message) is Deliver:
            prefix = deliver_prefix(
                message.mode, message.sender, message.room, message.traffic_class, message.content
            )
            self.reader.bind(prefix, message.with_payload(b""))


class RelayConnection(Connection):
    """The relay's side of a connection.

    Args:
        identity: proves which relay this is.
        payload_bytes: the payload limit that WELCOME will announce.
    """

    __slots__ = ("_act_1_taken", "_handshake", "_payload_bytes")
    role = Role.RELAY
    peer_role = Role.CLIENT

    def __init__(self, identity: Identity, payload_bytes: int = DEFAULT_PAYLOAD_BYTES) -> None:
        super().__init__()
        self._handshake = RelayHandshake(identity)
        self._payload_bytes = payload_bytes
        self._act_1_taken = False

    def _expected_act_bytes(self) -> int:
        return ACT3_BYTES if self._act_1_taken else ACT1_BYTES

    def _take_act(self, act: bytes) -> None:
        if self._act_1_taken:
            # SPEC handshake.md: A relay MUST check the client identity as described under "Checking an identity"
            #   before it reads any record.
            self._handshake.read_act3(act)
            self._established(self._handshake.result)
            del self._handshake  # as the client
        else:
            self._handshake.read_act1(act)
            self._act_out = self._handshake.act2()
            self._act_1_taken = True

    def _check_beginning(self, data: bytes) -> None:
        # SPEC handshake.md: A relay MUST close the connection without a word as soon as the bytes received differ
        #   from the preface.
        if not self._act_1_taken and data[: len(PREFACE)] != PREFACE[: len(data)]:
            raise HandshakeError("not an AwesomeConnect client: the first bytes are another protocol's")

    def _note(self, message: Message) -> None:
        if type(message) is Hello:
            self._set_payload_limit(self._payload_bytes)


def _step(role: Role, state: State, message: Message, error: type[ProtocolError]) -> State:
    """The state of a half after ``message``."""
    following = TRANSITIONS[role][state].get(type(message))
    # SPEC messages.md: A receiver MUST answer a message that the sender's role or state does not allow with CLOSE
    #   unexpected_message.
    if following is None:
        raise _unexpected(error, type(message).__name__, role, state)
    return following


def _unexpected(error: type[ProtocolError], what: str, role: Role, state: State) -> ProtocolError:
    return error(f"{what} from the {role.value} in state {state.name}", ErrorCode.UNEXPECTED_MESSAGE)


def _in_pieces(whole: bytes, message: Message) -> list[bytes]:
    """The frames that carry a frame: itself, or its fragments."""
    if not is_fragmented(whole):
        return [whole]
    # SPEC frames.md: A sender MUST NOT send any other frame of a class while a fragmented frame of that class is
    #   open in that direction.
    pieces = []
    offset = LENGTH_BYTES
    while offset < len(whole):
        fragment, offset = piece(whole, offset, class_of(message), MAX_PLAINTEXT)
        pieces.append(fragment)
    return pieces


def _packed(frames: list[bytes]) -> list[bytes]:
    """Frames joined into as few records' plaintexts as they fit; a longer one is spread over several."""
    # SPEC records.md: A sender SHOULD put all frames that are ready into one record.
    # SPEC records.md: A sender MAY begin and end records anywhere in the plaintext stream.
    data = b"".join(frames)
    return [data[at : at + MAX_PLAINTEXT] for at in range(0, len(data), MAX_PLAINTEXT)]
