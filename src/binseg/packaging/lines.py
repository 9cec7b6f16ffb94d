"""Strangers' text inside our messages: one line, nothing that moves a terminal's cursor."""

__all__ = ["one_line"]


def one_line(text: str, *, limit: int = 300) -> str:
    r"""The text without line breaks and control characters, cut at `limit`.

    >>> one_line("two\nlines \x1b[2J")
    'two lines ?[2J'
    """
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."
