"""Floor 1: one file per method, and the table that names them."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ssad_ray.errors import ConfigError

if TYPE_CHECKING:
    from ssad_ray.config import DetectorConfig
    from ssad_ray.methods.base import Method

AUTO = "auto"
"""Instead of the name of a detector: whichever suits the protocol and the images."""


def _lazy(module: str, name: str) -> "Callable[[], type[Method]]":
    # Torch is imported when a method is first asked for, so that listing the methods stays instant.
    return lambda: cast("type[Method]", getattr(import_module(f"ssad_ray.methods.{module}"), name))


DETECTORS: "dict[str, Callable[[], type[Method]]]" = {
    "pixel_reference": _lazy("pixel_reference", "PixelReference"),
    "autoencoder": _lazy("autoencoder", "Autoencoder"),
    "draem": _lazy("draem", "Draem"),
    "context_svdd": _lazy("context_svdd", "ContextSvdd"),
    "cutpaste_sla": _lazy("cutpaste_sla", "CutPasteSla"),
    "gan_inversion": _lazy("gan_inversion", "GanInversion"),
    "template_difference": _lazy("template_difference", "TemplateDifference"),
    "memory_bank": _lazy("memory_bank", "MemoryBank"),
    "fusion": _lazy("fusion", "Fusion"),
}
SEGMENTERS: "dict[str, Callable[[], type[Method]]]" = {
    "unet": _lazy("unet", "UnetSegmenter"),
    "template_unet": _lazy("template_unet", "TemplateUnet"),
}
METHODS = DETECTORS | SEGMENTERS


def check_detectors(config: "DetectorConfig") -> None:
    """Refuse a name that is not a detector's, of the one that is asked for and of a fusion's parts."""
    parts = [name for name in DETECTORS if name != "fusion"]
    for field, names, known in (
        ("detector.name", [config.name], [AUTO, *DETECTORS]),
        ("detector.fusion.parts", config.fusion.parts, parts),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"{field}: no detector is called {name!r}; known ones are {', '.join(known)}")


def load_method(name: str) -> "type[Method]":
    """Import the class of a method; an unknown name is refused with the known ones."""
    if name not in METHODS:
        raise ConfigError(f"no method is called {name!r}; known methods are {', '.join(METHODS)}")
    return METHODS[name]()
