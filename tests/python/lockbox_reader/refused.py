"""The one way to say no."""


class Refused(Exception):
    """A vector is refused, with the class of its reason as tests/vectors/README.md lists them."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def demand(kept: bool, reason: str, detail: str = "") -> None:
    """Refuses unless a rule is kept."""
    if not kept:
        raise Refused(reason, detail)
