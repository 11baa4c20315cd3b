"""Many texts under keys of their own: libsodium and `cryptography` give the same bytes, and each opens the other's."""

from __future__ import annotations

import os
import random

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from truing.tasks.tables import aead
from truing.tasks.tables.aead import NONCE, TAG, Whose, encrypt_many

SIZES = [0, 1, 15, 16, 17, 200, 4_000, 70_000]


def some(seed: int, sizes: list[int]) -> tuple[list[Whose], list[bytes]]:
    rng = random.Random(seed)
    whose = [(rng.randbytes(4), rng.randbytes(32), rng.randbytes(rng.choice((0, 32)))) for _ in sizes]
    return whose, [rng.randbytes(size) for size in sizes]


@pytest.mark.parametrize("engine", ["libsodium", "cryptography"])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:-1], [], [0]])
def test_what_is_sealed_by_either_opens_by_the_standards_own(
    engine: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "cryptography":
        monkeypatch.setattr(aead, "_SODIUM", None)
    elif aead._SODIUM is None:
        pytest.skip("no libsodium with AES for this processor")
    whose, texts = some(1, sizes)
    sealed = encrypt_many(whose, texts)
    assert len(sealed) == len(texts)
    for (header, key, owner), text, blob in zip(whose, texts, sealed, strict=True):
        assert blob.startswith(header) and len(blob) == len(header) + NONCE + len(text) + TAG
        nonce, rest = blob[4 : 4 + NONCE], blob[4 + NONCE :]
        assert AESGCM(key).decrypt(nonce, rest, owner) == text
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(nonce, rest, owner + b"x")


def test_both_give_the_same_bytes_for_the_same_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    if aead._SODIUM is None:
        pytest.skip("no libsodium with AES for this processor")
    whose, texts = some(2, SIZES[:-1] * 20)
    monkeypatch.setattr(os, "urandom", lambda count: random.Random(3).randbytes(count))
    fast = encrypt_many(whose, texts)
    monkeypatch.setattr(aead, "_SODIUM", None)
    assert encrypt_many(whose, texts) == fast


def test_no_nonce_comes_twice() -> None:
    whose, texts = some(4, [3] * 5_000)
    sealed = encrypt_many(whose, texts) + encrypt_many(whose, texts)
    assert len({blob[4 : 4 + NONCE] for blob in sealed}) == len(sealed)
