"""What one server takes, in numbers; every one of them can be changed."""

from dataclasses import dataclass

from binseg.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a server.

    Raises:
        UsageError: a limit of nothing.
    """

    max_bytes: int = 50_000_000
    """Of an image's file."""
    max_pixels: int = 50_000_000
    """Height times width of an image that is answered at once; larger ones are jobs."""
    max_seconds: float = 60.0
    """From the last byte of a request to its answer."""
    queue: int = 32
    """Predictions in work or waiting; one more is refused with 429."""
    workers: int = 2
    """Threads that decode images and encode answers."""
    max_files: int = 64
    """In a batch; together they may have four times `max_bytes`."""
    max_job_bytes: int = 4_000_000_000
    max_job_pixels: int = 10_000_000_000
    """Of all pages."""
    max_jobs_bytes: int = 20_000_000_000
    """Of all jobs' images and results on disk."""
    keep_hours: float = 24.0
    """After which finished jobs are removed."""
    head_seconds: float = 10.0
    """For the head of a request to arrive, and for a body to begin."""
    min_rate: int = 16_000
    """Bytes a second that a body must come with, beyond the first `head_seconds`."""
    send_seconds: float = 30.0
    """How long a client may stop reading its answer."""
    max_head_bytes: int = 16_384
    """Of a request's line and headers."""
    connections: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UsageError(f"{name.replace('_', '-')} {value:g}: give a number above 0")

    @property
    def max_memory(self) -> int:
        """Bytes that all images in work may take, packed and unpacked."""
        return 4 * (self.max_bytes + 8 * self.max_pixels)

    def as_dict(self) -> dict[str, float]:
        """What clients should know."""
        return {
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "max_seconds": self.max_seconds,
            "max_files": self.max_files,
            "max_job_bytes": self.max_job_bytes,
            "max_job_pixels": self.max_job_pixels,
        }
