"""Who a node is: its Ed25519 identity, the file that keeps it, and the address that names a relay by it.

A public key is 32 bytes, written as 64 lower-case hexadecimal digits. The handshake does not sign with the
identity: it uses the key's image on the Montgomery curve (X25519), so that nothing transferable is produced.

This module knows nothing of the wire, of connections or of time. Beside ``wire/noise.py`` and ``wire/sealing.py``
it is the only one that touches PyNaCl, and it checks every length itself: some of PyNaCl's bindings read past a
short key.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import stat
from contextlib import suppress
from pathlib import Path

import attrs
from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_scalarmult_base,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_seed_keypair,
)

from awesomeconnect.errors import AddressError, KeyFileError

KEY_BYTES = 32
"""Size of a public key, and of the seed that a private key grows from."""

DEFAULT_PORT = 7420
"""TCP port of a relay whose address names none."""

_FIELD_PRIME = 2**255 - 19  # of Curve25519, RFC 7748
_LOW_255_BITS = 2**255 - 1  # an encoded point is its y, and the sign of its x in the highest bit (RFC 8032, 5.1.2)

_MAX_UNIX_PATH_BYTES = 107  # sun_path of sockaddr_un has 108 on Linux, the last of them the terminating zero
_MAX_KEY_FILE_BYTES = 256  # a key file has 85; enough to see that a file is something else

_KEY_TEXT = re.compile(r"[0-9a-f]{64}")
_KEY_FILE = re.compile(rb"awesomeconnect-key-1 ([0-9a-f]{64})\n?")
_HOST = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._-]{0,252}")  # a DNS name has at most 253 (RFC 1035, 2.3.4)
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?")  # what ipaddress takes, with a tame scope
_ADDRESS = re.compile(
    r"ac://(?P<key>[^@]*)@"
    r"(?:(?P<path>/.*)|(?:\[(?P<ipv6>[^][:]*:[^][]*)\]|(?P<host>[^][:]+))(?::(?P<port>[0-9]{1,5}))?)",
    re.DOTALL,
)


def parse_key(text: str) -> bytes:
    """The 32 bytes of a public key from its text form. Whether they are a point shows in the handshake.

    Raises:
        AddressError: anything but 64 lower-case hexadecimal digits.
    """
    # SPEC handshake.md: A client MUST refuse an address whose key is not 64 lower-case hexadecimal digits.
    if not _KEY_TEXT.fullmatch(text):
        raise AddressError(f"not a public key: {text[:80]!r}; expected 64 lower-case hexadecimal digits")
    return bytes.fromhex(text)


def key_text(key: bytes) -> str:
    """The text form of a public key: 64 lower-case hexadecimal digits."""
    # SPEC messages.md: The text form of a key is its 32 bytes as 64 lower-case hexadecimal digits.
    return key.hex()


def short_key(key: bytes) -> str:
    """The first 8 digits of the text form: enough to tell nodes apart on a screen, never to trust one."""
    return key[:4].hex()


def x25519_image(public_key: bytes) -> bytes:
    """The X25519 public key (32 bytes) of an Ed25519 public key. K and -K have the same image.

    Raises:
        ValueError: not 32 bytes, or not the canonical form of a point of the prime-order subgroup.
    """
    # SPEC handshake.md: A side MUST refuse an identity that is not the canonical encoding of a point of the
    #   prime-order subgroup of Ed25519 other than the neutral element.
    if len(public_key) != KEY_BYTES or not crypto_core_ed25519_is_valid_point(public_key):
        raise ValueError("not an Ed25519 public key of prime order")
    # RFC 7748, 4.1: u = (1 + y) / (1 - y). libsodium's conversion checks the point a second time, which costs as
    # much as a key exchange; only the neutral element has y = 1.
    y = int.from_bytes(public_key, "little") & _LOW_255_BITS
    return ((1 + y) * pow(1 - y, -1, _FIELD_PRIME) % _FIELD_PRIME).to_bytes(KEY_BYTES, "little")


def default_state_dir() -> Path:
    """Where this user's keys live: ``awesomeconnect`` in ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    state_home = Path(os.environ.get("XDG_STATE_HOME", ""))
    # XDG Base Directory Specification: "All paths set in these environment variables must be absolute."
    return (state_home if state_home.is_absolute() else Path.home() / ".local/state") / "awesomeconnect"


def _open_without_waiting(path: str, flags: int) -> int:
    """Opens a FIFO without waiting for its writer; nothing changes for regular files."""
    return os.open(path, flags | os.O_NONBLOCK)


def _checked_seed(seed: bytes) -> bytes:
    if len(seed) != KEY_BYTES:
        raise ValueError(f"a seed has {KEY_BYTES} bytes, not {len(seed)}")
    return bytes(seed)


@attrs.frozen
class Identity:
    """An Ed25519 key pair with its X25519 image. Two are equal when their public keys are.

    Attributes:
        seed: the secret that all else follows from (32 bytes).
        public_key: who the node is (32 bytes).
        x25519_private: private key of the handshake (32 bytes).
        x25519_public: its public key, the image of ``public_key`` (32 bytes).
    """

    seed: bytes = attrs.field(converter=_checked_seed, repr=False, eq=False)
    public_key: bytes = attrs.field(init=False, repr=key_text)
    x25519_private: bytes = attrs.field(init=False, repr=False, eq=False)
    x25519_public: bytes = attrs.field(init=False, repr=False, eq=False)

    @public_key.default
    def _derive_public_key(self) -> bytes:
        public_key, _ = crypto_sign_seed_keypair(self.seed)
        return public_key

    @x25519_private.default
    def _derive_x25519_private(self) -> bytes:
        return crypto_sign_ed25519_sk_to_curve25519(self.seed + self.public_key)

    @x25519_public.default
    def _derive_x25519_public(self) -> bytes:
        return crypto_scalarmult_base(self.x25519_private)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity that grows from a 32-byte seed.

        Raises:
            ValueError: the seed does not have 32 bytes.
        """
        return cls(seed)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity in a key file that only its owner, the user of this process, may touch.

        Raises:
            KeyFileError: missing, unreadable, not owned, open to others, or not a key file; says what to do.
        """
        quoted = shlex.quote(os.fspath(path))
        try:
            with open(path, "rb", opener=_open_without_waiting) as file:
                status = os.fstat(file.fileno())
                content = file.read(_MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            raise KeyFileError(f"no key file at {quoted}; make one with `awesomeconnect key new`") from None
        except OSError as problem:
            raise KeyFileError(f"cannot read the key file {quoted}: {problem.strerror}") from problem
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{quoted} is not a regular file; name a key file")
        if status.st_uid != os.geteuid():
            raise KeyFileError(
                f"the key file {quoted} belongs to user {status.st_uid}, but this process runs as user "
                f"{os.geteuid()}; run it as the owner, or: chown {os.geteuid()} {quoted}"
            )
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyFileError(
                f"the key file {quoted} is open to other users, its mode is "
                f"{stat.S_IMODE(status.st_mode):04o}; make a new key if one of them may have read it, "
                f"otherwise: chmod 600 {quoted}"
            )
        line = _KEY_FILE.fullmatch(content)
        if line is None:
            raise KeyFileError(
                f"{quoted} is not a key file (one line: awesomeconnect-key-1 and 64 lower-case hexadecimal "
                "digits); restore it from a backup, or move it away and make a new key"
            )
        return cls(bytes.fromhex(line[1].decode()))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a new key file with mode 0600, its folder made with mode 0700 where missing.

        Raises:
            KeyFileError: something is there already (it is never overwritten), or the file cannot be written.
        """
        try:
            self._create(path)
        except FileExistsError as problem:
            raise KeyFileError(
                f"{shlex.quote(os.fspath(problem.filename))} exists and is not overwritten; "
                "choose another path, or move it away"
            ) from None

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """The identity in the key file at ``path``; where there is none, a new one that is saved there.

        Raises:
            KeyFileError: as ``load`` and ``save``.
        """
        if os.path.lexists(path):
            return cls.load(path)
        identity = cls.generate()
        try:
            identity._create(path)
        except FileExistsError:  # another process was quicker: its key is the one
            return cls.load(path)
        return identity

    def _create(self, path: str | os.PathLike[str]) -> None:
        """Write the key file; FileExistsError passes, any other failure is a KeyFileError."""
        created = False
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            created = True
            with open(descriptor, "wb") as file:
                file.write(b"awesomeconnect-key-1 %s\n" % self.seed.hex().encode())
                file.flush()
                os.fsync(descriptor)
        except FileExistsError:
            raise
        except OSError as problem:
            if created:  # half a key file would only be in the way of the next attempt
                with suppress(OSError):
                    os.unlink(path)
            quoted = shlex.quote(os.fspath(path))
            raise KeyFileError(f"cannot write the key file {quoted}: {problem.strerror}") from problem


def _checked_host(host: str) -> str:
    if not host or _HOST.fullmatch(host):
        return host
    try:
        return str(ipaddress.IPv6Address(host if _IPV6.fullmatch(host) else ""))
    except ValueError as problem:
        raise AddressError(f"neither a host name nor an IP address: {host[:80]!r}") from problem


@attrs.frozen
class RelayAddress:
    """Where a relay listens, and the key that it must prove: ``ac://KEY@host:port`` or ``ac://KEY@/path``.

    Attributes:
        key: the relay's public key (32 bytes).
        host: DNS name or IP address; empty for a Unix socket.
        port: TCP port, 1..65535; without meaning for a Unix socket.
        path: absolute path of a Unix socket; empty for TCP.

    Raises:
        AddressError: a part that is none of these.
    """

    # SPEC handshake.md: A client MUST NOT connect to a relay without knowing its key beforehand.
    key: bytes = attrs.field(repr=key_text)
    host: str = attrs.field(default="", converter=_checked_host)
    port: int = DEFAULT_PORT
    path: str = ""

    def __attrs_post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise AddressError(f"a relay's key has {KEY_BYTES} bytes, not {len(self.key)}")
        if bool(self.host) == bool(self.path):
            raise AddressError("a relay address has either a host or the path of a Unix socket")
        if not 1 <= self.port <= 65_535:
            raise AddressError(f"not a TCP port: {self.port}; expected 1 to 65535")
        if self.path and not (self.path.startswith("/") and self.path.isprintable()):
            raise AddressError(f"not an absolute path: {self.path[:200]!r}")
        if len(self.path.encode()) > _MAX_UNIX_PATH_BYTES:
            raise AddressError(
                f"the path of a Unix socket has at most {_MAX_UNIX_PATH_BYTES} bytes: {self.path[:200]!r}"
            )

    @classmethod
    def parse(cls, text: str) -> RelayAddress:
        """The address from its text form; a missing port is 7420.

        Raises:
            AddressError: not a relay address; the text says which part is wrong.
        """
        parts = _ADDRESS.fullmatch(text)
        if parts is None:
            raise AddressError(
                f"not a relay address: {text[:200]!r}; "
                "expected ac://KEY@host:port, ac://KEY@[IPv6]:port or ac://KEY@/path/of/unix.socket"
            )
        key = parse_key(parts["key"])
        if parts["path"]:
            return cls(key, path=parts["path"])
        # SPEC handshake.md: A client MUST use port 7420 for an address without a port.
        return cls(key, parts["host"] or parts["ipv6"], int(parts["port"] or DEFAULT_PORT))

    def __str__(self) -> str:
        if self.path:
            return f"ac://{key_text(self.key)}@{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ac://{key_text(self.key)}@{host}:{self.port}"
