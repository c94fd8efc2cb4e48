"""The oldest versions these files run on, checked before anything newer is imported.

Every configuration file takes `strict` from here, not from its own package: so this file is read first, and loaders of
old transformers, which copy only what a file imports itself, find it.
"""

import re
from importlib.metadata import version

REQUIRED = {"torch": (2, 11), "transformers": (5, 17)}


def check_versions(required: dict[str, tuple[int, ...]] | None = None) -> None:
    """Raise ImportError, naming the way out, when an installed package is older than these files need."""
    for package, minimum in (required or REQUIRED).items():
        found = version(package)
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < minimum:
            wanted = ".".join(map(str, minimum))
            raise ImportError(
                f"this model's files need {package} >= {wanted}, found {found}: pip install -U '{package}>={wanted}'"
            )


check_versions()

from huggingface_hub.dataclasses import strict  # noqa: E402  (older installations do not have it)
from transformers import PreTrainedConfig  # noqa: E402

__all__ = ["PreTrainedConfig", "check_versions", "strict"]
