"""C3, C12, C16: what no line of the package may do, and regular expressions that no text can keep busy."""

from __future__ import annotations

import ast
import inspect
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hf_seqmodels
from hf_seqmodels.hub.files import SECRETS
from hf_seqmodels.inference import app, page

try:
    from re import _parser as sre_parse  # Python 3.11 and later
except ImportError:  # pragma: no cover
    import sre_parse

PACKAGE = Path(hf_seqmodels.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file: ("torch.load", the call); "?.load" where it is of something computed."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def option(call: ast.Call, name: str) -> object:
    """The value of a keyword: its constant, "?" for anything else, None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "?"
    return None


def test_all_files_were_found():
    assert len(SOURCES) >= 80
    assert sum(name == "torch.load" for path in SOURCES for name, _ in calls(path)) >= 2


# ---- C3: pickles ------------------------------------------------------------------------------------------------


@each_source
def test_nothing_is_unpickled(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|\bUnpickler\b", text)
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
            if node.module == "pickle":
                assert {alias.name for alias in node.names} <= {"UnpicklingError"}
        unwanted = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
        assert not unwanted & {module.split(".")[0] for module in modules}
    for name, call in calls(path):
        assert name not in ("pickle.load", "pickle.loads", "?.load_module"), f"line {call.lineno}"
        if name == "torch.load":
            assert option(call, "weights_only") is True, f"line {call.lineno}: torch.load(…, weights_only=True)"
        if name in ("np.load", "numpy.load"):
            assert option(call, "allow_pickle") in (None, False), f"line {call.lineno}"
        if name.endswith("load_model"):
            assert option(call, "safe_mode") in (None, True), f"line {call.lineno}"


# ---- C12: what text may become ----------------------------------------------------------------------------------


@each_source
def test_text_does_not_become_code(path):
    for name, call in calls(path):
        line = f"line {call.lineno}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), line
        assert name not in ("yaml.full_load", "yaml.unsafe_load", "yaml.load_all"), line
        if name == "yaml.load":
            loader = next(keyword.value for keyword in call.keywords if keyword.arg == "Loader")
            assert is_safe_loader(path, loader), line
        assert option(call, "shell") in (None, False), line
        assert option(call, "trust_remote_code") is not True or path.name == "stranger.py", line
        if name == "importlib.import_module" and isinstance(call.args[0], ast.Name):
            assert path.name == "cli.py", f"{line}: a module named by text"  # which has a table of its own


def is_safe_loader(path: Path, loader: ast.expr) -> bool:
    """`yaml.SafeLoader`, or a class of the file that derives from it alone."""
    if dotted(loader) == "yaml.SafeLoader":
        return True
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    bases = [dotted(base) for node in classes if node.name == dotted(loader) for base in node.bases]
    return bases == ["yaml.SafeLoader"]


# ---- C16: addresses ---------------------------------------------------------------------------------------------


@each_source
def test_servers_stay_on_this_machine(path):
    text = path.read_text(encoding="utf-8")
    assert "share=True" not in text
    for line in text.splitlines():
        assert "0.0.0.0" not in line or 'if os.environ.get("SYSTEM") == "spaces" else "127.0.0.1"' in line
    for name, call in calls(path):
        if name.endswith(".launch"):  # gradio's, whose default is 127.0.0.1 unless GRADIO_SERVER_NAME says otherwise
            given = option(call, "server_name")
            assert given in ("127.0.0.1", "?"), f"line {call.lineno}: say server_name, or the environment decides"
        if name in ("ThreadingHTTPServer", "HTTPServer", "socketserver.TCPServer"):
            pytest.fail(f"line {call.lineno}: a server of our own")


def test_the_page_is_for_this_machine_unless_asked_otherwise():
    assert inspect.signature(page.serve).parameters["host"].default == "127.0.0.1"
    assert app._parser().parse_args([]).host == "127.0.0.1"


# ---- C16: regular expressions -----------------------------------------------------------------------------------

FUNCTIONS = {"compile", "search", "match", "fullmatch", "findall", "finditer", "sub", "subn", "split"}
LONGEST, SLOWEST = 8_000, 0.1  # characters and seconds: what is quadratic takes longer
# They read the README, the recipes and the docstrings of this package, where markers stand once.
OWN_TEXT = {"tables.py", "report.py", "options.py"}


class Expression(NamedTuple):
    where: str
    pattern: str | bytes
    whole: bool  # matched from the start of a text alone (match, fullmatch), not looked for at every place


def expressions() -> list[Expression]:
    """Every pattern given to a function of `re` in the package; parts that are filled in are "x"."""
    found = [Expression(f"files.py {kind}", pattern, False) for kind, pattern in SECRETS.items()]
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {node.value: dotted(node.targets[0]) for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = dotted(call.func)
            if not name.startswith("re.") or name[3:] not in FUNCTIONS:
                continue
            used = {name[3:]}
            if name == "re.compile":
                used = set(re.findall(rf"\b{named[call]}\.(\w+)\(", text))
            where, pattern = f"{path.name}:{call.lineno}", call.args[0]
            if isinstance(pattern, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "x" for part in pattern.values]
                pattern = ast.Constant("".join(map(str, parts)))
            if isinstance(pattern, ast.Constant):
                found.append(Expression(where, pattern.value, bool(used) and used <= {"match", "fullmatch"}))
            else:
                assert path.name == "files.py", f"{where}: a pattern that this test cannot see"  # there: SECRETS
    return found


def literals(pattern: str | bytes) -> list[str]:
    """The runs of plain characters in a pattern, which are what makes it start to match."""
    runs, run = [], ""

    def walk(parts: object) -> None:
        nonlocal run
        for part in parts if isinstance(parts, list | tuple | sre_parse.SubPattern) else []:
            if isinstance(part, tuple) and len(part) == 2 and str(part[0]) == "LITERAL":
                run += chr(part[1])
            else:
                runs.append(run)
                run = ""
                walk(part)
        runs.append(run)
        run = ""

    walk(sre_parse.parse(pattern))
    return sorted({run for run in runs if run})


PUMPS = ["a", "0", " ", "\n", '"', '\\"', "\\", "{", "[", "-", "_", ".", "a ", "A ", "a\n", "_0", "0.", "é"]


def hostile_texts(pattern: str | bytes, length: int) -> Iterator[str]:
    """Long repetitions of what the pattern knows, before an end that does not fit."""
    known = literals(pattern)
    for pump in [*known, *PUMPS, *(one + other for one in known for other in (*known, "a", " ", "\n"))]:
        for start in ("", '"', *known[:2]):
            yield start + pump * (length // len(pump)) + "\x00"


@pytest.mark.parametrize("expression", expressions(), ids=lambda found: f"{found.where} {found.pattern!r:.30}")
def test_regular_expressions_are_linear(expression):
    if expression.where.split(":")[0] in OWN_TEXT:
        pytest.skip("reads the package's own text")
    compiled = re.compile(expression.pattern, re.MULTILINE)
    for length in (24, 500, LONGEST):  # what is exponential shows in the first, and would never end the last
        for text in hostile_texts(expression.pattern, length):
            seconds = spent(compiled, text.encode() if isinstance(expression.pattern, bytes) else text, expression)
            assert seconds < SLOWEST, f"{expression}: {seconds:.2f} s on {text[:30]!r} …"


def spent(compiled: re.Pattern, text: str | bytes, expression: Expression) -> float:
    """Seconds of one run, the least of three: the machine may have been busy."""
    least = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        if expression.whole:
            compiled.fullmatch(text)
        else:
            for _ in compiled.finditer(text):
                pass
        least = min(least, time.perf_counter() - start)
        if not SLOWEST < least < 1:
            break
    return least


@pytest.mark.parametrize("pattern", [r'"(?:[^"\\]|\\.)*"', r"(a+)+$", rb"\w+\d"])
def test_the_test_sees_what_is_not_linear(pattern):
    with pytest.raises(AssertionError, match=" s on "):
        test_regular_expressions_are_linear(Expression("here:1", pattern, False))
