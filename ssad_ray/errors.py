"""Every error this package raises on purpose.

    InspectionError
    ├── ConfigError        the request is wrong: an option, a config field, a name
    ├── DataError          the data is wrong: a file, an image, an annotation, a folder layout
    ├── ArtifactError      something this package wrote is missing, broken or of another kind than asked for
    └── UnavailableError   the surroundings are wrong: no cluster, no device, no disk space

An error takes exactly one string, so that it arrives whole after crossing a process boundary. The string says what
is wrong, where, what came, what is accepted and what to do.
"""

from typing import ClassVar


class InspectionError(Exception):
    """Base of all deliberate errors; `detail` is the message meant for a person."""

    exit_code: ClassVar[int] = 1

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ConfigError(InspectionError):
    """The request is wrong: an option, a config field or a name."""

    exit_code = 2


class DataError(InspectionError):
    """The data is wrong: a file, an image, an annotation or a folder layout."""

    exit_code = 3


class ArtifactError(InspectionError):
    """Something this package wrote is missing, broken, or of another kind than asked for."""

    exit_code = 4


class UnavailableError(InspectionError):
    """The surroundings are wrong: no cluster, no device, no disk space."""

    exit_code = 5
