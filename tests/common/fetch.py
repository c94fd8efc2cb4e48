"""Get transformers' own common tests, which are in its source archive but not in its wheel.

They are laid out as the package `transformers_tests` in `.cache/transformers-<version>/` (ignored by git), of the
version that is installed. The archive has only `tests/test_*.py`; what these import from sub-folders is written here.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

VERSION = version("transformers")
CACHE = Path(__file__).parents[2] / ".cache" / f"transformers-{VERSION}"
PACKAGE = CACHE / "transformers_tests"
FILES = ("test_modeling_common.py", "test_configuration_common.py", "test_training_mixin.py")

# The two mixins are upstream's tests of torch.export and of generate(), which the archive does not have; the
# dictionary is what `ConfigTester` sets on a configuration: a value that is not the default for each common option.
MISSING = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
    "pad_token_id": 7,
    "bos_token_id": 8,
    "eos_token_id": 9,
}
""",
}


def fetch() -> Path:
    """The folder that holds the package `transformers_tests`; downloads the source archive the first time.

    Raises:
        CalledProcessError: pip cannot reach the package index.
    """
    if not all((PACKAGE / name).exists() for name in FILES):
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps"]
            subprocess.run([*pip, "--dest", folder, f"transformers=={VERSION}"], check=True)
            (archive,) = Path(folder).glob("*.tar.gz")
            _extract(archive)
    for name, text in MISSING.items():
        (PACKAGE / name).parent.mkdir(parents=True, exist_ok=True)
        (PACKAGE / name).write_text(text)
    return CACHE


def _extract(archive: Path) -> None:
    """Copy `FILES` from the archive's tests folder, and the licence they are under."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        (top,) = {name.split("/")[0] for name in tar.getnames()}
        for name in ("LICENSE", *(f"tests/{file}" for file in FILES)):
            member = tar.extractfile(f"{top}/{name}")
            assert member is not None
            (PACKAGE / Path(name).name).write_bytes(member.read())
