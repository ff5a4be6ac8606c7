"""The published test vectors of version 1: made with the original's own classes and fixed randomness."""

from __future__ import annotations


def _hex(*pieces: str) -> bytes:
    return bytes.fromhex("".join(pieces))


SERVER_SEED = bytes(range(0x00, 0x20))
SERVER_PUBLIC = _hex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
CLIENT_SEED = bytes(range(0x20, 0x40))
CLIENT_PUBLIC = _hex("29acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7")
CLIENT_EPHEMERAL = bytes(range(0x40, 0x60))
CLIENT_EPHEMERAL_PUBLIC = _hex("79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a")
SERVER_EPHEMERAL = bytes(range(0x60, 0x80))
SERVER_EPHEMERAL_PUBLIC = _hex("675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f")
CLIENT_NONCE = bytes(range(0xA0, 0xAC))
SERVER_NONCE = bytes(range(0xB0, 0xBC))

CLIENT_HELLO = _hex(
    "0000008f00010129acbae141bccaf0b22e1a94d34d0bc7361e526d0bfe12c89794bc9322966dd7",
    "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51aa0a1a2a3a4a5a6",
    "a7a8a9aaabb0ca55abac84438a5c18a858b146147b2f2b94ae86cd88a8bdf3e010917a2f027b15",
    "1ef6d1646c8a46560140164a09e9ff2433eed36d9c57a54217ad5d722b08",
)
SERVER_HELLO = _hex(
    "0000008f00010003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
    "675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52fb0b1b2b3b4b5b6",
    "b7b8b9babb0fef3f18229c5bc04c9b1eeb5e5ffe08a8d904a2217c96a418db45b6012a9247d72d",
    "331278be4e9cd24fcc4ebd1bf18bff9caa207073b5d427c99f3d42438209",
)

SHARED = _hex("d6fb939511b2381bc8599b4b8edc5968829450dfd7a87aebe78a703cd04cd54e")
PRK = _hex("2fac74d320e59eed9cfd14f1c32a94a8e6d251af23b9048d892d87d3d0fb9f3c")
KEY_C2S = _hex("057f2bcdddb87e952b98cd8030bf90340e8c24f0f6b9e4fea6713b30afb696ac")
KEY_S2C = _hex("883e14c1574bfb4d1de4906652cfb4d9a776747b0667a0ae519bc5b097d7b492")
BASE_C2S = _hex("1f863ea1")
BASE_S2C = _hex("87fc13d7")

SESSION_KEY = bytes(range(0xC0, 0xE0))
CONN_ID = "1a2b3c4d"
TOKEN = _hex("2022b3fe4249b4e7c8069920eb8851300a7bc67fab0d6ffdc6d1549d73668629")

# (name, direction, counter, plaintext, container or None, wire)
FRAMES: list[tuple[str, str, int, bytes, bytes | None, bytes]] = [
    (
        "open-tunnel", "c2s", 0,
        _hex("0a000000000000001f900000000a7765622d736572766572"),
        _hex("04224d18684018000000000000004f17000000220a000100f0011f900000000a7765622d73657276657200000000"),
        _hex("0000003e8cbb93cf984de4d12e75219e4cd2cc7e7ed1ae5a1068ab5332adabeb75a2a38cd584df660354a89e259ea32789c0",
             "0e2949db9208c1f6a74e3e3ecde1c4d5"),
    ),
    (
        "auth-ok", "s2c", 0,
        _hex("020000000000c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf"),
        _hex("04224d18684026000000000000008526000080020000000000c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9",
             "dadbdcdddedf00000000"),
        _hex("0000004de1a5f13bddf7955065b038d25e8ced65da34c20db87d3cb8e300e8311a841be1f08d31d80d29216b71ed35ddb978",
             "5de9ca51f71f0805feddaef96f600774f27cf07c804ef05ac87395338c2f60"),
    ),
    (
        "tunnel-status", "s2c", 1,
        _hex("0c0000000000000000044f70656e0000000a7765622d736572766572"),
        None,
        _hex("0000004150854dad40159eeb43b1ee57626dd4e6aad914f8e94db28715f99dabc092c7c0940fb71ca0c7f177e7012a5a860421fb",
             "f91b2a5b25288826e83b47dd2d4fab6eec"),
    ),
    (
        "incoming-conn", "s2c", 2,
        _hex("1400000000000000000a7765622d736572766572000000083161326233633464"),
        None,
        _hex("00000045178a8caa930656cc3b7ec327729f963bd75cee3ae2bb81aa06160bef145a8d08a000d63b661bf3160b5fdc24dea0dd0c",
             "b0c4cdb039cc5f748ca949d72e4459616618866cb6"),
    ),
    (
        "heartbeat", "c2s", 1,
        _hex("5a0000000000"),
        None,
        _hex("0000002d2fa46709d743089c51c3fbf413b39697cda2cb60a048408df1e7570914355a6f31bb1318f774f2878e22ad450c"),
    ),
    (
        "data-300", "c2s", 2,
        _hex("1e0000000000") + b"a" * 300,
        _hex("04224d1868403201000000000000f711000000201e0001001f610100ff1450616161616100000000"),
        _hex("00000038a1e8fec88b7fbcb87d3a3339719b7334f1d868a3f6d7e73c51c07d30ca74d763c076753a2241b383c82d8b75ff1d06cb",
             "8bad44e514902e9c"),
    ),
    (
        "data-conn-ready", "c2s", 3,
        _hex("150000000000000000202022b3fe4249b4e7c8069920eb8851300a7bc67fab0d6ffdc6d1549d73668629000000083161326233",
             "633464"),
        None,
        _hex("0000005b64c13e1342e8832c59b51807ef3fb64ff3ef57f75abd8064e343605b8e9e2fe1d83f166ba3219b568a5114bb1493ae74",
             "8c3423e5636f974c6e6d55fd3230e88dc70e08b02debeae6c160599afa2c0cb34e7e4b78920ae3376b081e"),
    ),
    (
        "data-get", "s2c", 3,
        _hex("1e0000000000474554202f20485454502f312e310d0a486f73743a20610d0a0d0a"),
        None,
        _hex("00000048fa7b2247ac6715c7e584cc242792e7195bc3971dae94265276eb4a9d2a8549a6b5c117d5b70569504e5f4dce8dad970d",
             "00213495b59c50f84df7202cd974008c7817dfbb8659002a"),
    ),
]
