"""The text files under tests/vectors."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "vectors"


@dataclass(frozen=True)
class Vector:
    """What is under test (the body), and what a reader has to know about it (the headers)."""

    name: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of a header, in their order."""
        return [value for header, value in self.headers if header == name]

    def has(self, name: str) -> bool:
        return bool(self.all(name))

    def value(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{self.name} has {len(values)} headers {name}"
        return values[0]

    def bytes(self, name: str) -> bytes:
        return bytes.fromhex(self.value(name))

    def number(self, name: str) -> int:
        return int(self.value(name))

    @property
    def kind(self) -> str:
        return self.value("kind")

    @property
    def stated(self) -> str:
        """`accepted`, or the reason for which it must be refused."""
        return "accepted" if self.value("expect") == "accepted" else self.value("reason")


def parse(name: str, text: str) -> Vector:
    head, _, body = text.partition("\n\n")
    headers = tuple(tuple(line.split(": ", 1)) for line in head.splitlines())
    return Vector(name, headers, bytes.fromhex(body))


def read_all() -> dict[str, Vector]:
    """Every vector, by name."""
    return {path.stem: parse(path.stem, path.read_text()) for path in sorted(FOLDER.glob("*.txt"))}
