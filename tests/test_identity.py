"""Identities, key files, keys as text and relay addresses."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.errors import AddressError, KeyFileError
from awesomeconnect.identity import (
    DEFAULT_PORT,
    Identity,
    RelayAddress,
    default_state_dir,
    key_text,
    parse_key,
    short_key,
    x25519_image,
)

# RFC 8032, 7.1, TEST 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = key_text(PUBLIC)

SMALL_ORDER = [  # the points of order 1, 2, 4 and 8 in canonical form
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def plus_order_two(point: bytes) -> bytes:
    """The point plus (0, -1): of order 2L, so mixed. The sum with (0, -1) is (-x, -y)."""
    number = int.from_bytes(point, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    return ((_P - y) | ((1 - sign) << 255)).to_bytes(32, "little")


class TestIdentity:
    def test_grows_from_its_seed(self) -> None:
        identity = Identity.from_seed(SEED)
        assert (identity.seed, identity.public_key) == (SEED, PUBLIC)
        assert x25519_image(PUBLIC) == identity.x25519_public

    @pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
    def test_refuses_a_seed_of_another_length(self, size: int) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            Identity.from_seed(bytes(size))

    def test_is_new_each_time(self) -> None:
        assert Identity.generate() != Identity.generate()

    def test_is_its_public_key(self) -> None:
        identity = Identity.from_seed(SEED)
        assert identity == Identity.from_seed(SEED)
        assert len({identity, Identity.from_seed(SEED)}) == 1

    def test_never_shows_its_secrets(self) -> None:
        identity = Identity.from_seed(SEED)
        assert KEY in repr(identity)
        for secret in (identity.seed, identity.x25519_private):
            assert secret.hex() not in repr(identity)
            assert repr(secret) not in repr(identity)


class TestImage:
    """SECURITY 25 (lengths) and 27 (small and mixed order points)."""

    @given(st.binary(min_size=32, max_size=32))
    def test_is_the_public_key_of_the_converted_private_key(self, seed: bytes) -> None:
        identity = Identity.from_seed(seed)
        assert x25519_image(identity.public_key) == identity.x25519_public

    @pytest.mark.parametrize("size", [0, 1, 31, 33])
    def test_refuses_another_length(self, size: int) -> None:
        with pytest.raises(ValueError, match="prime order"):
            x25519_image(PUBLIC[:size].ljust(size, b"\x00"))

    @pytest.mark.parametrize("point", SMALL_ORDER)
    def test_refuses_small_order(self, point: str) -> None:
        with pytest.raises(ValueError, match="prime order"):
            x25519_image(bytes.fromhex(point))

    @given(st.binary(min_size=32, max_size=32))
    def test_refuses_mixed_order(self, seed: bytes) -> None:
        mixed = plus_order_two(Identity.from_seed(seed).public_key)
        y = int.from_bytes(mixed, "little") & (2**255 - 1)
        x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
        assert pow(x_squared, (_P - 1) // 2, _P) == 1, "the test's point is on the curve"
        with pytest.raises(ValueError, match="prime order"):
            x25519_image(mixed)

    def test_refuses_a_form_that_is_not_canonical(self) -> None:
        # 2^255 - 16 = p + 3: y = 3 is on the curve, this is its second encoding
        with pytest.raises(ValueError, match="prime order"):
            x25519_image((2**255 - 16).to_bytes(32, "little"))

    def test_refuses_what_is_not_on_the_curve(self) -> None:
        with pytest.raises(ValueError, match="prime order"):
            x25519_image((2).to_bytes(32, "little"))


class TestKeyText:
    @given(st.binary(min_size=32, max_size=32))
    def test_round_trip(self, key: bytes) -> None:
        assert parse_key(key_text(key)) == key
        assert key_text(key).startswith(short_key(key))
        assert len(short_key(key)) == 8

    @pytest.mark.parametrize(
        "text", ["", KEY[:-1], KEY + "0", KEY.upper(), KEY[:-1] + "g", KEY + "\n", " " + KEY, "٣" * 64]
    )
    def test_refuses_all_else(self, text: str) -> None:
        with pytest.raises(AddressError, match="64 lower-case"):
            parse_key(text)


class TestKeyFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        path = tmp_path / "folder" / "node.key"
        Identity.from_seed(SEED).save(path)
        assert path.read_text() == f"awesomeconnect-key-1 {SEED.hex()}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert Identity.load(path).seed == SEED
        assert Identity.load(str(path)).seed == SEED

    def test_is_never_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "node.key"
        path.write_text("precious")
        with pytest.raises(KeyFileError, match=r"node\.key exists and is not overwritten"):
            Identity.generate().save(path)
        assert path.read_text() == "precious"

    def test_a_link_is_not_followed_when_saving(self, tmp_path: Path) -> None:
        path = tmp_path / "node.key"
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(KeyFileError, match="not overwritten"):
            Identity.generate().save(path)
        assert not (tmp_path / "elsewhere").exists()

    def test_a_file_in_the_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(KeyFileError, match="file exists and is not overwritten"):
            Identity.generate().save(tmp_path / "file" / "node.key")
        with pytest.raises(KeyFileError, match="cannot read the key file"):
            Identity.load_or_create(tmp_path / "file" / "node.key")

    def test_the_folder_cannot_be_made(self) -> None:
        with pytest.raises(KeyFileError, match="cannot write the key file"):
            Identity.generate().save("/proc/no-such-folder/node.key")

    def test_a_full_disk_leaves_no_half_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(KeyFileError, match="No space left"):
            Identity.generate().save(tmp_path / "node.key")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777])
    def test_loose_permissions_are_refused(self, tmp_path: Path, mode: int) -> None:
        """SECURITY 57 (mosquitto CVE-2017-9868)."""
        path = tmp_path / "my key"
        Identity.generate().save(path)
        path.chmod(mode)
        with pytest.raises(KeyFileError, match=rf"{mode:04o}.*chmod 600 '{path}'"):
            Identity.load(path)

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_tight_permissions_are_taken(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "node.key"
        Identity.from_seed(SEED).save(path)
        path.chmod(mode)
        assert Identity.load(path).seed == SEED

    def test_another_owner_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "node.key"
        Identity.generate().save(path)
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        with pytest.raises(KeyFileError, match=r"belongs to user .* chown"):
            Identity.load(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyFileError, match="make one with `awesomeconnect key new`"):
            Identity.load(tmp_path / "node.key")

    def test_a_folder_and_a_pipe_are_no_key_files(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe", 0o600)
        with pytest.raises(KeyFileError, match="not a regular file"):
            Identity.load(tmp_path / "pipe")
        with pytest.raises(KeyFileError, match="Is a directory"):
            Identity.load(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            SEED.hex(),
            f"awesomeconnect-key-2 {SEED.hex()}\n",
            f"awesomeconnect-key-1 {SEED.hex().upper()}\n",
            f"awesomeconnect-key-1 {SEED.hex()[:-2]}\n",
            f"awesomeconnect-key-1 {SEED.hex()}\n\n",
            f"awesomeconnect-key-1 {SEED.hex()}\n" * 1_000,
        ],
    )
    def test_bad_content_is_refused_and_not_shown(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "node.key"
        path.touch(0o600)
        path.write_text(content)
        with pytest.raises(KeyFileError, match="is not a key file") as caught:
            Identity.load(path)
        assert SEED.hex()[:8] not in str(caught.value)

    def test_the_newline_may_be_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "node.key"
        path.touch(0o600)
        path.write_text(f"awesomeconnect-key-1 {SEED.hex()}")
        assert Identity.load(path).seed == SEED

    def test_load_or_create(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "node.key"
        made = Identity.load_or_create(path)
        assert Identity.load_or_create(path).seed == made.seed

    def test_load_or_create_when_another_process_is_quicker(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "node.key"
        Identity.from_seed(SEED).save(path)
        monkeypatch.setattr(os.path, "lexists", lambda _path: False)
        assert Identity.load_or_create(path).seed == SEED


class TestStateDir:
    @pytest.mark.parametrize(
        ("xdg_state_home", "expected"),
        [
            ("/var/state", "/var/state/awesomeconnect"),
            ("", "/home/ada/.local/state/awesomeconnect"),
            ("relative", "/home/ada/.local/state/awesomeconnect"),
        ],
    )
    def test_follows_xdg(self, monkeypatch: pytest.MonkeyPatch, xdg_state_home: str, expected: str) -> None:
        monkeypatch.setenv("HOME", "/home/ada")
        monkeypatch.setenv("XDG_STATE_HOME", xdg_state_home)
        assert default_state_dir() == Path(expected)


class TestRelayAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            (f"ac://{KEY}@relay.example.org:7421", RelayAddress(PUBLIC, "relay.example.org", 7421)),
            (f"ac://{KEY}@my_host:1", RelayAddress(PUBLIC, "my_host", 1)),
            (f"ac://{KEY}@127.0.0.1:65535", RelayAddress(PUBLIC, "127.0.0.1", 65_535)),
            (f"ac://{KEY}@[::1]:7420", RelayAddress(PUBLIC, "::1", 7420)),
            (f"ac://{KEY}@[fe80::1%eth0]:7420", RelayAddress(PUBLIC, "fe80::1%eth0", 7420)),
            (f"ac://{KEY}@/run/user/a b@c:1/ac.sock", RelayAddress(PUBLIC, path="/run/user/a b@c:1/ac.sock")),
        ],
    )
    def test_round_trip(self, text: str, address: RelayAddress) -> None:
        assert RelayAddress.parse(text) == address
        assert str(address) == text

    @pytest.mark.parametrize("host", ["localhost", "[::1]"])
    def test_default_port(self, host: str) -> None:
        address = RelayAddress.parse(f"ac://{KEY}@{host}")
        assert address.port == DEFAULT_PORT == 7420
        assert str(address) == f"ac://{KEY}@{host}:7420"

    def test_one_ipv6_address_has_one_form(self) -> None:
        assert RelayAddress.parse(f"ac://{KEY}@[0:0:0::0:1]") == RelayAddress.parse(f"ac://{KEY}@[::1]")

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "not a relay address"),
            ("localhost:7420", "not a relay address"),
            (f"{KEY}@localhost", "not a relay address"),
            (f"http://{KEY}@localhost", "not a relay address"),
            (f"ac://{KEY}", "not a relay address"),
            (f"ac://{KEY}@", "not a relay address"),
            (f"ac://{KEY}@:7420", "not a relay address"),
            (f"ac://{KEY}@::1", "not a relay address"),
            (f"ac://{KEY}@[localhost]:1", "not a relay address"),
            (f"ac://{KEY}@[[::1]]:1", "not a relay address"),
            (f"ac://{KEY}@localhost:", "not a relay address"),
            (f"ac://{KEY}@localhost:http", "not a relay address"),
            (f"ac://{KEY}@localhost:٣", "not a relay address"),
            (f"ac://{KEY}@localhost:123456", "not a relay address"),
            ("ac://@localhost", "not a public key"),
            (f"ac://{KEY.upper()}@localhost", "not a public key"),
            (f"ac://{KEY[:-1]}@localhost", "not a public key"),
            (f"ac://{KEY}@localhost:0", "not a TCP port: 0"),
            (f"ac://{KEY}@localhost:65536", "not a TCP port: 65536"),
            (f"ac://{KEY}@local host", "neither a host name"),
            (f"ac://{KEY}@localhost\n", "neither a host name"),
            (f"ac://{KEY}@localhost/path", "neither a host name"),
            (f"ac://{KEY}@-x", "neither a host name"),
            (f"ac://{KEY}@{'x' * 254}", "neither a host name"),
            (f"ac://{KEY}@[::g]:1", "neither a host name"),
            (f"ac://{KEY}@[1::2::3]:1", "neither a host name"),
            (f"ac://{KEY}@[fe80::1%\x1b]:1", "neither a host name"),
            (f"ac://{KEY}@/run/\x1b[2J", "not an absolute path"),
            (f"ac://{KEY}@/{'x' * 107}", "at most 107 bytes"),
        ],
    )
    def test_refuses_bad_text(self, text: str, complaint: str) -> None:
        with pytest.raises(AddressError, match=complaint) as caught:
            RelayAddress.parse(text)
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"key": PUBLIC[1:], "host": "localhost"}, "32 bytes, not 31"),
            ({"key": PUBLIC}, "either a host or the path"),
            ({"key": PUBLIC, "host": "localhost", "path": "/x"}, "either a host or the path"),
            ({"key": PUBLIC, "path": "x"}, "not an absolute path"),
        ],
    )
    def test_refuses_bad_parts(self, arguments: dict[str, object], complaint: str) -> None:
        with pytest.raises(AddressError, match=complaint):
            RelayAddress(**arguments)  # type: ignore[arg-type]

    @given(st.text(max_size=40))
    def test_nothing_but_an_address_error(self, text: str) -> None:
        for candidate in (text, f"ac://{KEY}@{text}", f"ac://{text}@localhost"):
            try:
                address = RelayAddress.parse(candidate)
            except AddressError:
                continue
            assert RelayAddress.parse(str(address)) == address
