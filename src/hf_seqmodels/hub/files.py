"""What may lie in a published folder, and whether it is whole: the allow-list, checksums, secrets, damaged files."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open

CHECKSUMS = "SHA256SUMS"
MAY_LEAVE_ENDINGS = {".safetensors", ".json", ".py", ".txt", ".md", ".png", ".yaml", ".jinja", ".model"}
MAY_LEAVE_NAMES = {CHECKSUMS, "LICENSE", ".gitattributes"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}
HIDDEN = {".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints"}
MOST_JSON_BYTES, MOST_JSON_DEPTH = 1_000_000, 64
PICKLED = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # protocols; torch.save writes a zip
BINARY = {".safetensors", ".png", ".onnx"}  # formats of their own, whose first bytes mean something else
MOST_SCANNED_BYTES = 50_000_000  # of one file; beyond it lie weights, and nobody's token

# A letter may stand before a token: JSON writes a line break as \n. Only "sk-" also ends words, as in "task-…".
SECRETS = {
    "Hugging Face token": rb"hf_[A-Za-z0-9]{20,64}(?![A-Za-z0-9])",
    "GitHub token": rb"gh[pousr]_[A-Za-z0-9]{30,80}(?![A-Za-z0-9])|github_pat_[A-Za-z0-9_]{30,100}(?![A-Za-z0-9_])",
    "AWS key": rb"AKIA[0-9A-Z]{16}(?![0-9A-Z])",
    "OpenAI-like key": rb"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt]))sk-[A-Za-z0-9_-]{32,200}(?![A-Za-z0-9_-])",
    "private key": rb"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----",
}


class UnsafeFolder(ValueError):
    """A folder that must not be loaded or published: one line with the file, the rule and the way out."""


def may_leave(name: str, onnx: bool = False) -> bool:
    """Whether a file of this name (relative, with /) may be published; `onnx` lets `.onnx` files go too."""
    path = PurePosixPath(name)
    return path.name in MAY_LEAVE_NAMES or path.suffix in MAY_LEAVE_ENDINGS or (onnx and path.suffix == ".onnx")


def is_pickle(name: str) -> bool:
    """Whether a name ends like a file that may run code, or hide weights from the checks, when it is loaded."""
    return PurePosixPath(name).suffix.lower() in PICKLES


def begins_like_a_pickle(path: Path) -> bool:
    """Whether a file, whatever its name, begins like a pickle or like the archive in which `torch.save` keeps one."""
    if path.suffix in BINARY:
        return False
    with path.open("rb") as file:
        return file.read(4).startswith(PICKLED)


def list_files(folder: Path | str) -> list[str]:
    """All files of a folder, as sorted relative names with /; caches and version control are left out.

    Raises:
        UnsafeFolder: there is no such folder, or a link leads out of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UnsafeFolder(f"'{folder}' is no folder; give the folder that `hf-seqmodels export` wrote")
    return sorted(_walk(root, root.resolve(), ""))


def _walk(folder: Path, root: Path, before: str) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name in HIDDEN:
            continue
        name = before + path.name
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UnsafeFolder(f"'{name}' is a link out of the folder; replace it by the file it should be")
        if path.is_dir():
            if path.is_symlink():
                raise UnsafeFolder(f"'{name}' is a link to a folder; replace it by the folder it should be")
            yield from _walk(path, root, f"{name}/")
        else:
            yield name


# ---- is it a checkpoint, and whole? -----------------------------------------------------------------------------


def check_folder(folder: Path | str) -> None:
    """Raise unless this is a whole checkpoint of safetensors that stays inside its folder.

    Raises:
        UnsafeFolder: no config.json, a JSON file that is none (or too large, or nested too deeply), no weights, a
            pickle, an index that names a file outside the folder or one that is not there, a damaged weights file.
    """
    root, names = Path(folder), list_files(folder)
    if "config.json" not in names:
        raise UnsafeFolder(f"'{folder}' is no checkpoint: it has no config.json; save_pretrained writes one")
    for name in names:
        if is_pickle(name):
            raise UnsafeFolder(
                f"'{name}' may be a pickle, which can run code when it is loaded; save the weights as safetensors "
                "(save_pretrained does) and delete it"
            )
        if begins_like_a_pickle(root / name):
            raise UnsafeFolder(f"'{name}' begins like a pickle or a zip archive, whatever its name says; delete it")
    for name in ("config.json", *(name for name in names if name.endswith(".index.json"))):
        check_index(root, name, read_json(root / name))
    weights = [name for name in names if name.endswith(".safetensors")]
    if not any(PurePosixPath(name).name.startswith(("model", "adapter_model")) for name in weights):
        raise UnsafeFolder(f"'{folder}' has no weights (model.safetensors); save_pretrained writes them")
    for name in weights:
        check_safetensors(root / name)


def read_json(path: Path) -> object:
    """A JSON file of limited size and depth.

    Raises:
        UnsafeFolder: it is larger than 1 MB (an index of shards, a run's record: 50 MB), deeper than 64 levels, or no
            JSON.
    """
    long = path.name == "result.json" or path.name.endswith(".index.json")  # logged points; tensors
    most = MOST_JSON_BYTES * (50 if long else 1)
    if path.stat().st_size > most:
        raise UnsafeFolder(f"'{path.name}' has {path.stat().st_size:,} bytes, more than the {most:,} allowed")
    try:
        text = path.read_text(encoding="utf-8")
        if _json_depth(text) > MOST_JSON_DEPTH:
            raise UnsafeFolder(f"'{path.name}' is nested more than {MOST_JSON_DEPTH} levels deep; write it flat")
        return json.loads(text)
    except UnsafeFolder:
        raise
    except ValueError as error:
        raise UnsafeFolder(f"'{path.name}' is no JSON ({error}); save the checkpoint again") from None


def _json_depth(text: str) -> int:
    """How deep brackets nest outside strings, before a parser recurses into them."""
    depth = deepest = 0
    # A string without an end takes the rest: looking for others in it would take quadratic time.
    for found in re.finditer(r'"(?:[^"\\]|\\.?)*(?:"|\Z)|[\[{]|[\]}]', text, re.DOTALL):
        if found[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in "]}":
            depth -= 1
    return deepest


def check_index(root: Path, index: str, content: object) -> None:
    """Raise UnsafeFolder unless `content` is an object and, if `index` lists shards, these lie beside it."""
    if not isinstance(content, dict):
        raise UnsafeFolder(f"'{index}' holds no JSON object; save the checkpoint again")
    if not index.endswith(".index.json"):
        return
    shards = content.get("weight_map")
    if not isinstance(shards, dict):
        raise UnsafeFolder(f"'{index}' has no weight_map; save the checkpoint again")
    for shard in sorted({str(value) for value in shards.values()}):
        if PurePosixPath(shard).name != shard or "\\" in shard or is_pickle(shard):
            raise UnsafeFolder(f"'{index}' names the shard '{shard}'; shards are safetensors beside the index")
        if not ((root / index).parent / shard).is_file():
            raise UnsafeFolder(f"'{index}' names the shard '{shard}', which is not there; the copy is incomplete")


def check_safetensors(path: Path) -> None:
    """Raise UnsafeFolder unless header and length of a safetensors file agree."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsafeFolder(
            f"'{path.name}' is truncated or damaged ({error}); copy it again, or save the model again"
        ) from None


# ---- checksums --------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: Path | str) -> str:
    """sha256 over the weights: the file itself, or of several shards all in the order of their names.

    Raises:
        UnsafeFolder: there are none.
    """
    names = [name for name in list_files(folder) if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
    if not names:
        raise UnsafeFolder(f"'{folder}' has no model.safetensors; save_pretrained writes it")
    digest = hashlib.sha256()
    for name in names:
        with Path(folder, name).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def write_checksums(folder: Path | str) -> Path:
    """Write `SHA256SUMS` of all other files that may leave; `sha256sum -c SHA256SUMS` checks it anywhere."""
    root = Path(folder)
    names = [name for name in list_files(root) if name != CHECKSUMS and may_leave(name, onnx=True)]
    unfinished, file = root / f"{CHECKSUMS}.tmp", root / CHECKSUMS
    unfinished.write_text("".join(f"{sha256(root / name)}  {name}\n" for name in names), encoding="utf-8")
    return unfinished.replace(file)


def read_checksums(folder: Path | str) -> dict[str, str]:
    """Name → sha256 as `SHA256SUMS` has them; empty without the file.

    Raises:
        UnsafeFolder: a line is none of `sha256sum`, or a name leads out of the folder.
    """
    file = Path(folder, CHECKSUMS)
    if not file.is_file():
        return {}
    found = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None or match[2].startswith("/") or ".." in PurePosixPath(match[2]).parts:
            raise UnsafeFolder(f"{CHECKSUMS} holds a line that is no checksum of a file inside: '{line[:80]}'")
        found[match[2]] = match[1]
    return found


def check_checksums(folder: Path | str) -> list[str]:
    """What differs from `SHA256SUMS`, one phrase each; a README changed or added on the Hub counts too.

    Files that may not leave (checkpoints, logs) need no entry.
    """
    root, listed = Path(folder), read_checksums(folder)
    if not listed:
        return [f"there is no {CHECKSUMS}"]
    names = {name for name in list_files(root) if name != CHECKSUMS}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - names)]
    problems += [f"{name} differs" for name in sorted(listed.keys() & names) if sha256(root / name) != listed[name]]
    unlisted = sorted(names - listed.keys() - {".gitattributes"})  # the Hub writes one into every repository
    return problems + [f"{name} is not listed" for name in unlisted if may_leave(name, onnx=True)]


# ---- secrets ----------------------------------------------------------------------------------------------------


def find_secrets(folder: Path | str) -> list[tuple[str, str]]:
    """(file, kind) for everything that looks like a token or a private key, or is the user's own token."""
    own = (get_token() or "").encode()
    found = []
    for name in list_files(folder):
        content = _text_of(Path(folder, name))
        if own and own in content:
            found.append((name, "your own Hugging Face token"))
            continue
        found += [(name, kind) for kind, pattern in SECRETS.items() if re.search(pattern, content)][:1]
    return found


def _text_of(path: Path) -> bytes:
    """What of a file can hold text: of weights only the header."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return file.read(MOST_SCANNED_BYTES)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return file.read(min(length, MOST_SCANNED_BYTES))
