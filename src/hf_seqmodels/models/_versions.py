"""The oldest versions these files run on, checked before anything newer is imported."""

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
