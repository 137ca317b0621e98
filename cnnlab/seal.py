"""A checkpoint's seal: the SHA-256 of its bytes, as the comment at the end of the zip file that it is.

Inside the file, so that no crash can come between a file and its digest, and where every reader of zip files, torch's
among them, passes over it.
"""

import hashlib
from pathlib import Path

TAG = b"cnnlab sha256 "
_LENGTH = len(TAG) + 64
# A zip file without a comment ends in the comment's length, two bytes (APPNOTE.TXT 4.3.16).
_NO_COMMENT = b"\0\0"


def sealed(content: bytes) -> tuple[bytes, bytes]:
    """Return a zip file that has no comment with the seal as its comment, in two parts."""
    assert content.endswith(_NO_COMMENT)
    body = content[: -len(_NO_COMMENT)] + _LENGTH.to_bytes(2, "little")
    return body, TAG + hashlib.sha256(body).hexdigest().encode()


def has_seal(path: Path) -> bool:
    """Whether a file ends in a seal, right or wrong."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _LENGTH))
        return file.read().startswith(TAG) and size > _LENGTH


def is_whole(path: Path) -> bool:
    """Whether a file has every byte that it was sealed with."""
    if not has_seal(path):
        return False
    digest, left = hashlib.sha256(), path.stat().st_size - _LENGTH
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
        return file.read() == TAG + digest.hexdigest().encode()
