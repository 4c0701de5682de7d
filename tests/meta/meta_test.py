#!/usr/bin/env python3
"""Holds the rules of the source tree that a compiler does not: who may include whom, sizes, macros,
the four files of an operator. Prints one line per offence and exits 1 if there is any.

    meta_test.py ROOT         checks the tree at ROOT
    meta_test.py --self-test  plants each offence in a small tree and expects it to be found
"""
import ast
import os
import re
import sys
import tempfile

MAX_COLUMNS = 100
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 100
MAX_MAIN_LINES = 80

MACROS = {"SLUICE_CHECK", "SLUICE_DCHECK", "CUDA_CHECK", "NCCL_CHECK", "MPI_CHECK", "HDF5_CHECK"}

# Folder -> folders whose headers it may include, beside its own. kernels/<op> is a case of its own.
ARROWS = {
    "data": {"kernels/core"},
    "parallel": {"kernels/core", "kernels/state_passing", "kernels/elementwise",
                 "kernels/token_slots"},
    "layers": {"parallel", "kernels"},
    "trainer": {"layers", "data", "parallel", "kernels"},
    "tests": {"trainer", "layers", "data", "parallel", "kernels"},
}
KERNEL_ARROWS = {
    "kernels/core": set(),
    "kernels/device": {"kernels/core"},
    # Products of experts with the activation between them.
    "kernels/gemm": {"kernels/core", "kernels/device", "kernels/activation"},
    # The states that enter every chunk, in one pass where the device can.
    "kernels/chunk_state": {"kernels/core", "kernels/device", "kernels/gemm",
                            "kernels/state_passing"},
    # The backward of both and of what lies between, in one pass where the device can.
    "kernels/chunk_scan": {"kernels/core", "kernels/device", "kernels/gemm", "kernels/chunk_state",
                           "kernels/state_passing"},
}
OPERATOR_ARROWS = {"kernels/core", "kernels/device", "kernels/gemm"}
NOT_OPERATORS = {"core", "device"}

# Spelt in halves, so that this file does not hold them.
FORBIDDEN_WORDS = [
    re.compile(r"\b" + "sess" + r"ions?\b", re.I),
    re.compile(r"\bsub-?" + r"agents?\b", re.I),
    re.compile(r"\bFIX" + r"ME\b", re.I),
    re.compile(r"\bTO" + r"DO\b(?! ?\(?#\d+)", re.I),  # fine with the number of an issue
]
DOWNLOADS = re.compile(r"\b(FetchContent|ExternalProject)\w*|file\s*\(\s*DOWNLOAD", re.I)

CXX = (".h", ".cpp", ".cu", ".cuh")
CODE = CXX + (".py", ".sh")
TEXT = CODE + (".txt", ".cmake", ".md", ".yaml", ".yml")
SKIPPED_FOLDERS = re.compile(r"^(\.git|build.*|runs|stores|golden|__pycache__)$")


class Source:
    """A file of the tree: its path from the root, with '/', and its lines."""

    def __init__(self, root, path):
        self.path = path
        self.folders = path.split("/")[:-1]
        with open(os.path.join(root, path), encoding="utf-8", errors="surrogateescape") as file:
            self.text = file.read()
        self.lines = self.text.splitlines()
        script = "." not in os.path.basename(path) and self.text.startswith("#!")
        self.is_code = path.endswith(CODE) or script
        self.is_cmake = path.endswith((".cmake", "CMakeLists.txt"))

    def at(self, number, message):
        return f"{self.path}:{number}: {message}"

    def matches(self, pattern):
        """(line number, match) of every match of a pattern."""
        for number, line in enumerate(self.lines, 1):
            for match in pattern.finditer(line):
                yield number, match


def read_tree(root):
    sources = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not SKIPPED_FOLDERS.match(name))
        for name in sorted(names):
            path = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            if name.endswith(TEXT) or ("." not in name and is_script(os.path.join(folder, name))):
                sources.append(Source(root, path))
    return sources


def is_script(path):
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


# ---- rules: each takes all sources and yields offences ------------------------------------------


def include_arrows(sources):
    """A folder includes only what design says it may."""
    folders = "|".join(["kernels", *ARROWS])
    pattern = re.compile(rf'^\s*#\s*include\s*["<]((?:{folders})/[^">]+)')
    for source in sources:
        if not source.path.endswith(CXX) or not source.folders:
            continue
        own, allowed = allowed_includes(source.folders)
        for number, match in source.matches(pattern):
            target = match.group(1)
            if not any(target.startswith(folder + "/") for folder in {own} | allowed):
                known = ", ".join(sorted(allowed)) or "nothing else"
                yield source.at(number, f"{own} may include {known}, not {target}")


def allowed_includes(folders):
    if folders[0] == "kernels" and len(folders) > 1:
        own = "/".join(folders[:2])
        return own, KERNEL_ARROWS.get(own, OPERATOR_ARROWS)
    return folders[0], ARROWS.get(folders[0], set())


def sizes(sources):
    """Lines per file and columns per line."""
    for source in sources:
        if not source.is_code:
            continue
        if len(source.lines) > MAX_FILE_LINES:
            yield source.at(MAX_FILE_LINES, f"{len(source.lines)} lines, at most {MAX_FILE_LINES}")
        if os.path.basename(source.path) == "main.cpp" and len(source.lines) > MAX_MAIN_LINES:
            yield source.at(MAX_MAIN_LINES, f"main.cpp has at most {MAX_MAIN_LINES} lines")
        for number, line in enumerate(source.lines, 1):
            if len(line) > MAX_COLUMNS:
                yield source.at(number, f"{len(line)} columns, at most {MAX_COLUMNS}")


def functions(sources):
    """Lines per function."""
    for source in sources:
        if source.path.endswith(CXX):
            spans = cxx_functions(source.text)
        elif source.path.endswith(".py"):
            spans = python_functions(source.text)
        else:
            continue
        for first, last in spans:
            length = last - first + 1
            if length > MAX_FUNCTION_LINES:
                yield source.at(first, f"function of {length} lines, at most {MAX_FUNCTION_LINES}")


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.end_lineno


def cxx_functions(text):
    """(first line, last line) of the function bodies outside other functions: braces are matched,
    and those of namespaces, classes and enums are looked through."""
    text = blank_out(text)
    transparent = re.compile(
        r"^(\s|inline\b|export\b|static\b|typedef\b)*(namespace|class|struct|union|enum|extern)\b")
    opened = []  # per open brace: the line where its statement begins; None if looked through
    statement_start = 0
    for match in re.finditer(r"[{};]|\b(?:public|private|protected):", text):
        token = match.group()
        inside = any(first is not None for first in opened)
        if token == "{":
            statement = text[statement_start:match.start()]
            bare = without_template_head(statement)
            if inside or not transparent.match(bare):
                begin = statement_start + len(statement) - len(statement.lstrip())
                opened.append(text.count("\n", 0, begin) + 1)
            else:
                opened.append(None)
        elif token == "}":
            first = opened.pop() if opened else None
            if first is not None and all(other is None for other in opened):
                yield first, text.count("\n", 0, match.start()) + 1
        if not any(first is not None for first in opened):
            statement_start = match.end()


def without_template_head(statement):
    bare = statement.lstrip()
    while bare.startswith("template"):
        depth = 0
        for i, char in enumerate(bare):
            depth += (char == "<") - (char == ">")
            if char == ">" and depth == 0:
                break
        bare = bare[i + 1:].lstrip()
    return bare


def blank_out(text):
    """The text with comments, literals and preprocessor lines blanked, newlines kept."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/'
        r'|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])*'"
        r"|^[ \t]*#(?:\\\n|[^\n])*",
        re.S | re.M)
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def characters(sources):
    """ASCII only, where people write code and prose."""
    for source in sources:
        for number, match in source.matches(re.compile(r"[^\x00-\x7f]")):
            yield source.at(number, f"not ASCII: column {match.start() + 1}")


def words(sources):
    """Words that have no place in the tree."""
    for source in sources:
        for pattern in FORBIDDEN_WORDS:
            for number, match in source.matches(pattern):
                yield source.at(number, f"'{match.group()}' has no place here")


def macros(sources):
    """No macros beside the six checks; headers are guarded by #pragma once."""
    pattern = re.compile(r"^\s*#\s*define\s+(\w+)")
    for source in sources:
        if not source.path.endswith(CXX):
            continue
        for number, match in source.matches(pattern):
            if match.group(1) not in MACROS:
                yield source.at(number, f"macro {match.group(1)}: write a function or a constant")
        if source.path.endswith((".h", ".cuh")) and "#pragma once" not in source.lines:
            yield source.at(1, "a header says #pragma once")


def operators(sources):
    """<op>.h, <op>.cpp, <op>_cpu.cpp, and a test that includes <op>.h."""
    paths = {source.path for source in sources}
    found = {source.folders[1] for source in sources
             if source.folders[:1] == ["kernels"] and len(source.folders) > 1}
    tests = [source.text for source in sources if source.path.startswith("tests/kernels/")]
    for op in sorted(found - NOT_OPERATORS):
        folder = f"kernels/{op}"
        for name in (f"{op}.h", f"{op}.cpp", f"{op}_cpu.cpp"):
            if f"{folder}/{name}" not in paths:
                yield f"{folder}:1: an operator has a file {name}"
        if f'#include "{folder}/{op}.h"' not in "\n".join(tests):
            yield f"{folder}:1: no test under tests/kernels includes {folder}/{op}.h"


def downloads(sources):
    """Nothing is downloaded at configure time."""
    for source in sources:
        if source.is_cmake:
            for number, match in source.matches(DOWNLOADS):
                yield source.at(number, f"{match.group()}: nothing is downloaded to configure")


RULES = (include_arrows, sizes, functions, characters, words, macros, operators, downloads)


def check(root):
    """(rule's name, offence) of everything that is wrong with the tree at root."""
    sources = read_tree(root)
    return [(rule.__name__, offence) for rule in RULES for offence in rule(sources)]


# ---- self-test ----------------------------------------------------------------------------------

CLEAN_TREE = {
    "CMakeLists.txt": "project(sluice)\n",
    "kernels/core/tensor.h": "#pragma once\n#define SLUICE_CHECK(x) x\n",
    "kernels/gemm/gemm.h": '#pragma once\n#include "kernels/core/tensor.h"\n',
    "kernels/gemm/gemm.cpp": '#include "kernels/gemm/gemm.h"\n',
    "kernels/gemm/gemm_cpu.cpp": "",
    "kernels/norm/norm.h": "#pragma once\n",
    "kernels/norm/norm.cpp": '#include "kernels/gemm/gemm.h"\n#include "kernels/core/tensor.h"\n',
    "kernels/norm/norm_cpu.cpp": "namespace a {\nint f() {\n" + "  g();\n" * 97 + "}\n}\n",
    "parallel/mesh.cpp": '#include "kernels/core/tensor.h"\n#include "parallel/mesh.h"\n',
    "data/store.cpp": '#include "kernels/core/tensor.h"\n',
    "layers/mlp.cpp": '#include "kernels/norm/norm.h"\n#include "parallel/mesh.h"\n',
    "trainer/main.cpp": '#include "layers/mlp.h"\n#include "data/store.h"\n',
    "tests/kernels/gemm_test.cpp": '#include "kernels/gemm/gemm.h"\n',
    "tests/kernels/norm_test.cpp": '#include "kernels/norm/norm.h"\n',
    "tests/golden/tokens.txt": "TO" + "DO \u00e9\n",
    "docs/notes.md": "TO" + "DO(#12): obsession is no forbidden word.\n",
}

LONG_BODY = "  g(1'000, '{', \"}\");  // }\n" * 99

# rule -> offences: a file (added or replaced; None: removed) that must be reported, and how often.
PLANTED = [
    ("include_arrows", "parallel/a.cpp", '#include "layers/mlp.h"\n', 1),
    ("include_arrows", "parallel/a.cpp", '#include "kernels/norm/norm.h"\n', 1),
    ("include_arrows", "data/a.cpp", '#include "parallel/mesh.h"\n', 1),
    ("include_arrows", "data/a.cpp", '#include "kernels/gemm/gemm.h"\n', 1),
    ("include_arrows", "layers/a.cpp", '#include "data/store.h"\n', 1),
    ("include_arrows", "layers/a/b.h", '#pragma once\n#include <trainer/config.h>\n', 1),
    ("include_arrows", "kernels/core/a.cpp", '#include "kernels/gemm/gemm.h"\n', 1),
    ("include_arrows", "kernels/gemm/a.cpp", '#include "kernels/norm/norm.h"\n', 1),
    ("include_arrows", "trainer/a.cpp", '#include "tests/support/tensors.h"\n', 1),
    ("sizes", "layers/a.cpp", "int a;\n" * 601, 1),
    ("sizes", "layers/a.cpp", "//" + "x" * 99 + "\n", 1),
    ("sizes", "launch/start", "#!/bin/sh\n#" + "x" * 100 + "\n", 1),
    ("sizes", "trainer/main.cpp", "int a;\n" * 81, 1),
    ("functions", "layers/a.cpp", "namespace a {\nvoid f() {\n" + LONG_BODY + "}\n}\n", 1),
    ("functions", "layers/a.h",
     "#pragma once\nstruct A {\n  template <class T>\n  void f() {\n" + LONG_BODY + "  }\n};\n", 1),
    ("functions", "tests/a.py", "def f():\n" + "    g()\n" * 100, 1),
    ("characters", "layers/a.cpp", "// \u00e9\n", 1),
    ("characters", "configs/a.yaml", "name: \u00e9\n", 1),
    ("words", "layers/a.cpp", "// a Sess" + "ion\n// To" + "do: later\n// fix" + "me\n", 3),
    ("words", "docs/a.md", "A sub" + "agent.\n", 1),
    ("macros", "layers/a.cpp", "  # define MAX(a, b) a\n", 1),
    ("macros", "layers/a.h", "#ifndef A\n#endif\n", 1),
    ("operators", "kernels/norm/norm_cpu.cpp", None, 1),
    ("operators", "kernels/conv/conv.h", "#pragma once\n", 3),
    ("operators", "tests/kernels/norm_test.cpp", "", 1),
    ("downloads", "cmake/a.cmake", "include(Fetch" + "Content)\nfile(DOWNLOAD x y)\n", 2),
]


def plant(root, tree):
    for path, content in tree.items():
        if content is None:
            continue
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(content)


def self_test():
    failures = 0
    for rule, path, content, count in [(None, None, None, 0)] + PLANTED:
        tree = dict(CLEAN_TREE)
        if path is not None:
            tree[path] = content
        with tempfile.TemporaryDirectory() as root:
            plant(root, tree)
            found = check(root)
        if [name for name, _ in found] != [rule] * count:
            failures += 1
            print(f"self-test: expected {count} of {rule} for {path}, got {found}")
    print(f"self-test: {len(PLANTED) + 1 - failures} passed, {failures} failed")
    return 1 if failures else 0


def main(arguments):
    if arguments == ["--self-test"]:
        return self_test()
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        print(__doc__, file=sys.stderr)
        return 2
    offences = check(arguments[0])
    for rule, offence in offences:
        print(f"{offence} [{rule}]")
    print(f"{len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
