"""AES-256-GCM for many short texts, each under a key of its own.

`cryptography` makes a cipher for every key, which takes two thirds of its 2 to 3 µs a text. libsodium's one-shot function
expands the key on the stack: 0.9 µs. PyNaCl carries it, but its public wrapper takes 4 µs, so its binding is called as the
wrapper does. That is private to PyNaCl, so it is looked at first; where it is not as expected, or the processor has no AES,
`cryptography` does the work. Both give the same bytes (NIST SP 800-38D); a test holds them equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Whose = tuple[bytes, bytes, bytes]
"""What stands before a text, the key that it is sealed with (32 bytes), and its owner."""
NONCE, TAG = 12, 16  # bytes
_FUNCTION = "crypto_aead_aes256gcm_encrypt"
_AT_ONCE = 64 << 10  # longer texts are as fast either way


def _binding() -> Any:
    """The module with `lib` and `ffi` of libsodium, or None."""
    try:
        from nacl import _sodium
        from nacl.bindings import sodium_init

        sodium_init()  # it looks at the processor
        sizes = (_sodium.lib.crypto_aead_aes256gcm_npubbytes(), _sodium.lib.crypto_aead_aes256gcm_abytes())
        if _sodium.lib.crypto_aead_aes256gcm_is_available() and sizes == (NONCE, TAG) and hasattr(_sodium.lib, _FUNCTION):
            return _sodium
    except (ImportError, AttributeError):
        return None
    return None


_SODIUM = _binding()


def encrypt_many(whose: Sequence[Whose], texts: Sequence[bytes]) -> list[bytes]:
    """header + nonce + ciphertext + tag of each text; the nonce is random, the owner authenticated along and not in it."""
    random = os.urandom(NONCE * len(texts))
    nonces = [random[at : at + NONCE] for at in range(0, len(random), NONCE)]
    if _SODIUM is None or max(map(len, texts), default=0) > _AT_ONCE:
        each = zip(whose, nonces, texts, strict=True)
        return [header + nonce + AESGCM(key).encrypt(nonce, text, owner) for (header, key, owner), nonce, text in each]
    ffi = _SODIUM.ffi
    encrypt, none = getattr(_SODIUM.lib, _FUNCTION), ffi.NULL
    space = ffi.new("unsigned char[]", _AT_ONCE + TAG)
    written = ffi.buffer(space)
    out: list[bytes] = []
    add = out.append
    for (header, key, owner), nonce, text in zip(whose, nonces, texts, strict=True):
        size = len(text)
        encrypt(space, none, text, size, owner, len(owner), none, nonce, key)
        add(header + nonce + written[: size + TAG])
    return out
