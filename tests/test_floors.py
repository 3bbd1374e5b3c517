"""The house rules that a machine can check, by walking the syntax trees of the package (docs/design/architecture.md).

Each rule is a function from one parsed file to its offences; a second test plants an offence per rule and demands
that the rule sees it, so that a rule which has gone blind turns red.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "halter"

FLOOR = {
    "errors": -1,
    "bounded": -1,
    "kinds": -1,
    "elsewhere": -0.75,
    "arguments": -0.5,
    "telling": -1,
    "waiting": -1,
    "version": -1,
    "numerics": 0,
    "model": 1,
    "files": 1,
    "pictures": 1.2,
    "readers": 1.3,
    "encoders": 1.3,
    "text": 1.5,
    "contract": 2,
    "parts": 2.2,
    "methods": 2.4,
    "data": 2,
    "playground": 2,
    "pretrained": 2,
    "adapters": 2.6,
    "training": 3,
    "generation": 3,
    "evaluation": 3.5,
    "planning": 3.5,
    "export": 3,
    "recipe": 4,
    "run": 4,
    "pretraining": 4.1,
    "inspection": 4.2,
    "serve": 4,
    "comparison": 4.5,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
WRITER = "halter/files/disk.py"
FOLDERS = ("halter/files/disk.py", "halter/files/folders.py")
ONLY_TORCH_LOAD = "halter/files/meta_archive.py"
FILE_LINES, FUNCTION_LINES, INIT_LINES = 350, 60, 60
# File or file::function, with the reason why it may be longer. Keep it short.
LONGER: dict[str, str] = {}

METHODS = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
# File, file::function or folder that may name methods, with the reason why.
MAY_NAME_METHODS = {
    "halter/methods/": "a method's own file",
    "halter/parts/": "what methods share: the names of its tensors stand there",
    "halter/adapters/importing/": "readers of other tools' files say which method a file is",
    "halter/recipe/foreign/": "readers of other tools' recipes say which method a recipe means",
    "halter/elsewhere.py::peft_call": "reads peft's configurations, whose words these are too",
    "halter/adapters/peft_together.py": "what PEFT files beside a method, a closed list of PEFT's (see there)",
    "halter/comparison/survey.py": "tests what a survey claims of named methods",
    "halter/planning/survey.py": "counts what a survey claims of named methods",
    "halter/cli/init.py::_from": "whether a method was named beside --from: the default was not",
    "halter/cli/adapters.py::convert": "--to lora is a form that is asked for, whatever the adapter's method",
}

Offences = Iterator[str]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part(module: str) -> str:
    """The part of the house a dotted name lies in: halter.model.decoder -> model; halter itself -> __init__."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def imports(tree: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever it stands; relative ones are made absolute."""
    package = name.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem == "halter":  # from halter import errors: the name may be a part
                for alias in node.names:
                    if alias.name in FLOOR:
                        yield node.lineno, f"halter.{alias.name}"
                    else:
                        yield node.lineno, "halter"
            else:
                yield node.lineno, stem


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name of what is called: torch.load, open, ?.write_text for Path(x).write_text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            pieces: list[str] = []
            target: ast.expr = node.func
            while isinstance(target, ast.Attribute):
                pieces.append(target.attr)
                target = target.value
            pieces.append(target.id if isinstance(target, ast.Name) else "?")
            yield node, ".".join(reversed(pieces))


def floors(tree: ast.AST, name: str) -> Offences:
    here = part(name.removesuffix(".py").replace("/", "."))
    if here not in FLOOR:
        yield f"{name}: '{here}' stands on no floor; give it one in tests/test_floors.py and the architecture's page"
        return
    for line, module in imports(tree, name):
        if module.split(".")[0] != "halter":
            continue
        there = part(module)
        if there == "__init__":
            yield f"{name}:{line}: imports the package's face; import the module where the name lives"
            continue
        same_folder = here == there or {here, there} == {"run", "recipe"}
        if not same_folder and FLOOR.get(there, 99) >= FLOOR[here]:
            yield f"{name}:{line}: floor {FLOOR[here]} ({here}) imports floor {FLOOR.get(there)} ({there})"


def foreign(tree: ast.AST, name: str) -> Offences:
    """The oracles of the tests, and modules that run code found in data, are not imported."""
    banned = {"transformers", "peft", "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "yaml", "joblib"}
    for line, module in imports(tree, name):
        if module.split(".")[0] in banned:
            yield f"{name}:{line}: imports {module}"


def evaluation(tree: ast.AST, name: str) -> Offences:
    for node, what in calls(tree):
        if what in {"eval", "exec", "yaml.load", "os.system"}:
            yield f"{name}:{node.lineno}: calls {what}"
        elif what == "torch.load":
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if name != ONLY_TORCH_LOAD or not safe:
                yield f"{name}:{node.lineno}: torch.load belongs in {ONLY_TORCH_LOAD}, with weights_only=True"


def writing(tree: ast.AST, name: str) -> Offences:
    """Files are written through one door, which makes every write atomic."""
    if name == WRITER:
        return
    writers = {"write_text", "write_bytes", "save_file", "save_pretrained", "savez", "copyfile", "copytree", "copy2"}
    exactly = {"torch.save", "np.save", "os.replace", "os.rename", "shutil.move", "shutil.copy"}
    for node, what in calls(tree):
        last = what.split(".")[-1]
        if what.startswith("writing.") or what in {"write_text", "write_bytes"}:
            continue  # the door itself
        if last in {"mkdir", "makedirs"} and name not in FOLDERS and not what.lower().startswith("disk."):
            yield f"{name}:{node.lineno}: {what} outside {', '.join(FOLDERS)}"
        elif last in writers or what in exactly:
            yield f"{name}:{node.lineno}: {what} outside {WRITER}"
        elif last in {"open", "fdopen"}:
            mode_at = 1 if what in {"open", "io.open", "os.fdopen", "gzip.open"} else 0
            modes = [k.value for k in node.keywords if k.arg == "mode"] + node.args[mode_at : mode_at + 1]
            if any(isinstance(m, ast.Constant) and set(str(m.value)) & set("wax+") for m in modes):
                yield f"{name}:{node.lineno}: {what} for writing outside {WRITER}"


def sizes(tree: ast.AST, name: str) -> Offences:
    assert isinstance(tree, ast.Module)
    lines = max((n.end_lineno or 0 for n in tree.body), default=0)
    limit = INIT_LINES if name.endswith("__init__.py") else FILE_LINES
    if lines > limit and name not in LONGER:
        yield f"{name}: {lines} lines, the limit is {limit}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if length > FUNCTION_LINES and f"{name}::{node.name}" not in LONGER:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines of code, the limit is {FUNCTION_LINES}"


def asking(tree: ast.AST, name: str) -> Offences:
    for node, what in calls(tree):
        # "_fields" is how Python itself tells a named tuple from a tuple.
        if what == "hasattr" and "_fields" not in ast.unparse(node):
            yield f"{name}:{node.lineno}: hasattr; our own objects know what they have"


def ladders(tree: ast.AST, name: str) -> Offences:
    """Which method it deals with, a file asks neither by name, nor by class, nor by the names of tensors: methods and
    pieces say what others need of them (halter/contract)."""
    if name.startswith(tuple(place for place in MAY_NAME_METHODS if "::" not in place)):
        return
    assert isinstance(tree, ast.Module)
    for line, module in imports(tree, name):
        if module.startswith("halter.methods"):
            yield f"{name}:{line}: imports {module}"
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    tables: dict[str, ast.expr] = {ast.unparse(target): node.value for node in assigned for target in node.targets}
    for top in tree.body:
        if isinstance(top, ast.FunctionDef) and f"{name}::{top.name}" in MAY_NAME_METHODS:
            continue
        for node in ast.walk(top):
            for method in asked_for(node, tables):
                yield f"{name}:{node.lineno}: asks for {method}"  # type: ignore[attr-defined]
            if isinstance(node, ast.Constant) and id(node) not in docstrings and TENSORS.search(str(node.value)):
                yield f"{name}:{node.lineno}: asks for tensors by their name, {node.value!r}"


def asked_for(node: ast.AST, tables: dict[str, ast.expr]) -> set[str]:
    """The methods that an expression compares something with, or has as keys; ``tables``: what the file's own names
    stand for."""
    sides: list[ast.AST | None] = []
    if isinstance(node, ast.Compare):
        sides += [tables.get(ast.unparse(side), side) for side in (node.left, *node.comparators)]
    elif isinstance(node, ast.MatchValue):
        sides.append(node.value)
    elif isinstance(node, ast.Dict):
        sides += node.keys
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("startswith", "endswith")):
        sides += node.args
    inner = [item for side in sides if isinstance(side, ast.Tuple | ast.List | ast.Set) for item in side.elts]
    return {str(one.value) for one in (*sides, *inner) if isinstance(one, ast.Constant) and one.value in METHODS}


def tensors_of_methods() -> re.Pattern[str]:
    """How tensors in adapter files are called, lora_A of lora_A.weight; what others are called too (weight, gate) is
    left out."""
    found: set[str] = set()
    for path in [*(PACKAGE / "methods").glob("*.py"), *(PACKAGE / "parts").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                words = [str(one.value) for one in node.value.values if isinstance(one, ast.Constant)]
                named = ast.unparse(node.targets[0]) == "saved_names"
                found |= {word.split(".")[0] for word in words if named and "_" in word}
    return re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(sorted(found))})(?![a-z0-9])")


TENSORS = tensors_of_methods()


def fixes(tree: ast.AST, name: str) -> Offences:
    """Every refusal says what to do; several as one say it each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Refusal":
            given = {keyword.arg for keyword in node.keywords}
            if not given & {"fix", None} and ast.unparse(node.args[0]) != "'preflight'":
                yield f"{name}:{node.lineno}: a refusal without a fix"


RULES: list[Callable[[ast.AST, str], Offences]] = [floors, foreign, evaluation, writing, sizes, asking, fixes, ladders]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_package_keeps_the_rule(rule: Callable[[ast.AST, str], Offences]) -> None:
    offences = [o for path in files() for o in rule(ast.parse(path.read_text("utf-8")), name_of(path))]
    assert not offences, "\n" + "\n".join(offences)


PLANTED = [
    (floors, "halter/numerics/x.py", "from halter.model import decoder"),
    (floors, "halter/numerics/x.py", "def f():\n    import halter.files.names"),
    (floors, "halter/model/x.py", "from ..files.names import y"),
    (floors, "halter/model/x.py", "from .. import files"),
    (floors, "halter/model/x.py", "from halter import files"),
    (floors, "halter/data/x.py", "from halter import load"),
    (floors, "halter/errors.py", "import halter.numerics.rope"),
    (floors, "halter/attic/x.py", ""),
    (foreign, "halter/model/x.py", "def f():\n    from transformers import AutoModel"),
    (foreign, "halter/model/x.py", "import pickle as p"),
    (evaluation, "halter/model/x.py", "eval('1')"),
    (evaluation, "halter/model/x.py", "torch.load('f', weights_only=True)"),
    (evaluation, "halter/files/meta_archive.py", "torch.load('f')"),
    (writing, "halter/run.py", "open('f', 'w')"),
    (writing, "halter/run.py", "Path('f').open(mode='ab')"),
    (writing, "halter/run.py", "folder.joinpath('f').write_text('x')"),
    (writing, "halter/run.py", "torch.save({}, 'f')"),
    (writing, "halter/run.py", "folder.mkdir(parents=True)"),
    (sizes, "halter/run.py", "x = 1\n" * 351),
    (sizes, "halter/x/__init__.py", "x = 1\n" * 61),
    (sizes, "halter/run.py", "def f():\n" + "    x = 1\n" * 60),
    (asking, "halter/run.py", "hasattr(model, 'x')"),
    (fixes, "halter/run.py", "raise errors.Refusal('x', 'y', expected='z')"),
    (ladders, "halter/run/x.py", "if method.name() == 'llama_adapter':\n    pass"),
    (ladders, "halter/run/x.py", "x = [m.name() for m in methods] != ['dora']"),
    (ladders, "halter/run/x.py", "def f(name):\n    return name in ('lora', 'dora')"),
    (ladders, "halter/run/x.py", "PAIRS = ('lora', 'pissa')\ndef f(name):\n    return name not in PAIRS"),
    (ladders, "halter/run/x.py", "INTO = {'lora': 1, 'dora': 2}\nx = INTO[name]"),
    (ladders, "halter/run/x.py", "x = {'ia3': f}.get(name, g)"),
    (ladders, "halter/run/x.py", "match name:\n    case 'vera':\n        pass"),
    (ladders, "halter/run/x.py", "x = name.startswith(('llama_adapter', 'y'))"),
    (ladders, "halter/run/x.py", "from halter.methods.dora import Directed"),
    (ladders, "halter/run/x.py", "def f():\n    from halter.methods import lora"),
    (ladders, "halter/run/x.py", "import halter.methods.full as full"),
    (ladders, "halter/run/x.py", "x = name.endswith('lora_A.weight')"),
    (ladders, "halter/run/x.py", "x = 'trainable_tokens_delta' in name"),
    (ladders, "halter/run/x.py", "x = f'{path}.lora_embedding_A'"),
    (ladders, "halter/cli/adapters.py", "def diff(to):\n    return to == 'lora'"),
]


@pytest.mark.parametrize(("rule", "name", "source"), PLANTED, ids=lambda v: getattr(v, "__name__", None))
def test_rule_sees_a_planted_offence(rule: Callable[[ast.AST, str], Offences], name: str, source: str) -> None:
    assert list(rule(ast.parse(source), name))


LAWFUL = [
    (fixes, "halter/run.py", "Refusal('x', 'y', fix='z')\nRefusal('x', **rest)\nRefusal('preflight', 'y')"),
    (floors, "halter/model/x.py", "from halter.errors import Refusal\nimport halter.numerics.rope\nfrom .x import y"),
    (floors, "halter/run.py", "from halter.recipe import Recipe\nfrom halter.version import __version__"),
    (writing, "halter/run.py", "open('f')\nopen('f', 'rb')\nPath('f').open('r')"),
    (writing, "halter/run.py", "writing.write_text('f', 'x')\nwrite_bytes('f', b'x')"),
    (writing, WRITER, "open('f', 'w')"),
    (writing, "halter/run.py", "DISK.mkdir(path)\nmake(path)"),
    (evaluation, ONLY_TORCH_LOAD, "torch.load('f', weights_only=True)\nmodel.eval()"),
    (sizes, "halter/run.py", "def f():\n" + "    x = 1\n" * 59),
    (ladders, "halter/run/x.py", "x = find('lora')(r=2)\ny = adapt(model, 'full')\nDEFAULT = 'lora'"),
    (ladders, "halter/run/x.py", "'of lora_A.weight'\nx = {'lora_alpha': 1}\ny = 'halter.adapt(model, \"lora\")'"),
    (ladders, "halter/run/x.py", "x = a.name() == b.name()\ny = name == 'qlora'\nz = 'weight' in name"),
    (ladders, "halter/cli/adapters.py", "def convert(to):\n    return to == 'lora'"),
    (ladders, "halter/recipe/foreign/x.py", "x = kind == 'lora'"),
    (ladders, "halter/methods/x.py", "from halter.methods.lora import Lora"),
]


@pytest.mark.parametrize(("rule", "name", "source"), LAWFUL, ids=lambda v: getattr(v, "__name__", None))
def test_rule_lets_lawful_code_pass(rule: Callable[[ast.AST, str], Offences], name: str, source: str) -> None:
    assert not list(rule(ast.parse(source), name))


def circles(imported: dict[str, set[str]]) -> list[set[str]]:
    """Modules of which each leads to every other, by {module: modules that it imports}."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in imported.get(waiting.pop(), ()):
                if name not in found:
                    found.add(name)
                    waiting.append(name)
        return found

    reach = {module: reached(module) for module in imported}
    round_about = {module: {m for m in there if module in reach.get(m, ())} for module, there in reach.items()}
    return [found for module, found in round_about.items() if found and module == min(found)]


def modules_imported() -> dict[str, set[str]]:
    """{module: modules of the package that it imports, within functions too}; what only type checkers read is none."""
    modules = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files()}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        found[module] = set()
        for node in ast.walk(tree):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                named = [
                    f"{node.module}.{name}" if f"{node.module}.{name}" in modules else f"{node.module}"
                    for name in named
                ]
            found[module] |= {name for name in named if name in modules and name != module}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    imported = modules_imported()
    assert not circles(imported)
    assert circles({**imported, "halter.errors": {"halter.cli.main"}})  # a planted one is seen
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]


def namesakes(sources: dict[str, str]) -> dict[str, list[str]]:
    """{class or type alias: files}, where several files of the package define one of that name."""
    found: dict[str, list[str]] = {}
    for name, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                alias = node.targets[0].id
                if alias[0].isupper() and not alias.isupper():
                    found.setdefault(alias, []).append(name)
    return {name: where for name, where in found.items() if len(where) > 1}


def test_a_name_of_a_class_has_one_meaning() -> None:
    assert not namesakes({name_of(path): path.read_text("utf-8") for path in files()})
    planted = {"halter/a.py": "class Row: ...\nT = TypeVar('T')", "halter/b.py": "Row = dict[str, int]\nT = 1"}
    assert namesakes(planted) == {"Row": ["halter/a.py", "halter/b.py"]}


def test_at_most_one_step_of_inheritance() -> None:
    bases: dict[str, set[str]] = {}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(b.id for b in node.bases if isinstance(b, ast.Name))
    deep = [f"{c} < {b} < {g}" for c, above in bases.items() for b in above for g in bases.get(b, ()) if g in bases]
    assert not deep, deep
