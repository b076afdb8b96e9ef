"""Read source files once and remember their hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from livprep.cases import FileRef
from livprep.formats.archive import read_bytes


@dataclass
class HashingReader:
    """Reads files and keeps the sha256 of each; the digest of a case does not depend on zipping or nesting.

    The digest is the sha256 over the sorted lines `role/name sha256`, where role is `image` or a mask's name.
    """

    digests: dict[str, str] = field(default_factory=dict)
    bytes_read: int = 0

    def read(self, role: str, ref: FileRef) -> bytes:
        """Return the file's content and record its hash under its role."""
        data = read_bytes(ref)
        self.digests[f"{role}/{ref.name}"] = hashlib.sha256(data).hexdigest()
        self.bytes_read += len(data)
        return data

    def digest(self) -> str:
        """Hash of everything read so far."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()
