"""Examples that cannot run, as in diffusers 0.42.1's ``cache.md``, are faults as well: what ours say must hold."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import diffcache
from diffcache import cli, list_methods
from diffcache.hooks.handle import Handle
from diffcache.methods import MethodConfig, make_config
from diffcache.methods.describe import memory_formula

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "samples" / "README.md"]
COMMANDS = typer.main.get_command(cli.app)
PREFIX = "diffcache "
#: that only samples import
EXTRAS = ("reasoning_gym", "vizdoom")
#: of whichever click typer is built on
UsageError = typer.BadParameter.__base__


def blocks(*languages: str) -> list:
    """Fenced blocks of all pages, with page and line as their id."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", blocks("python", "py"))
def test_every_python_example_compiles_and_what_it_takes_from_here_exists(code):
    """diffusers 0.42.1: ``pipe line=``, a variable of another name, a flow that enables twice and raises."""
    tree = ast.parse(code)
    bound = {*dir(builtins), *_bound(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffcache":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id in bound or node.func.id in diffcache.__all__, ast.unparse(node)
            _check_method(node)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(".diffcache"):
            assert hasattr(Handle, node.attr), ast.unparse(node)


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that the example itself gives a meaning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)


def _check_method(call: ast.Call) -> None:
    """The method of an accelerating call is known, and so are its settings."""
    if call.func.id not in ("accelerate_pipeline", "accelerate_model", "accelerated") or len(call.args) < 2:
        return
    method = call.args[1]
    if isinstance(method, ast.Constant) and not method.value.endswith((".yaml", ".json")):
        settings = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        fields = {field.name for field in dataclasses.fields(make_config(method.value))}
        assert set(settings) <= fields, ast.unparse(call)
        make_config(method.value, **{k: v for k, v in settings.items() if k != "schedule"})  # no file to read


# -- command lines -----------------------------------------------------------------------------------------------------


def lines(block: str) -> Iterator[list[str]]:
    """The words of each command line; ``a | b`` stands for two commands."""
    for line in block.replace("\\\n", " ").splitlines():
        first, *others = line.split("#")[0].split(" | ")
        if first.startswith(PREFIX):
            yield from (shlex.split(text) for text in (first.removeprefix(PREFIX), *others))


def parse(words: list[str]) -> dict:
    """The parameters of a command line, as the command itself reads them; raises UsageError."""
    command = COMMANDS.commands[words[0]]
    return command.make_context(words[0], words[1:]).params


@pytest.mark.parametrize("block", blocks("", "bash", "sh", "console"))
def test_every_command_line_is_understood(block):
    for words in lines(block):
        found = parse(words)
        if isinstance(found.get("method"), str):
            make_config(found["method"])


def test_the_check_of_command_lines_finds_what_is_wrong():
    for wrong in ("sample --no-such-option", "sample --steps many", "info"):
        with pytest.raises(UsageError):
            parse(shlex.split(wrong))
    with pytest.raises(KeyError):
        parse(["nosuchcommand"])
    assert sum(1 for block in blocks("", "bash") for _ in lines(block.values[0])) >= 6


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as left:
        COMMANDS([name, "--help"], prog_name="diffcache")
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for option in (o for p in COMMANDS.commands[name].params for o in p.opts if o.startswith("--")):
        assert option in shown


SCRIPTS = re.compile(r"python (samples/\w+\.py)((?: +--[\w-]+(?: +[\w./*-]+)*)*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_sample_that_a_page_names_exists_with_its_options(page):
    for script, options in SCRIPTS.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / script).is_file(), script
        source = _with_imports(ROOT / script)
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in source, f"{script} {option}"


def _with_imports(script):
    """A script's text and that of the modules beside it that it imports, which may define its options."""
    source = script.read_text(encoding="utf-8")
    beside = (script.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", source, re.MULTILINE))
    return source + "".join(path.read_text(encoding="utf-8") for path in beside if path.is_file())


@pytest.mark.parametrize("script", sorted((ROOT / "samples").glob("*.py")), ids=lambda script: script.stem)
def test_every_sample_finds_what_it_imports(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name="imported")
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        pytest.skip(f"needs {missing.name}, of an extra")


# -- what is said of methods -------------------------------------------------------------------------------------------


def test_the_readme_names_every_method_and_no_other():
    rows = re.findall(r"^\| (`[^|]+`) \| .+ \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row)}
    assert set(list_methods()) <= named
    assert {name for name in named if not name.startswith("tiny-") and not name.isdigit()} <= set(list_methods())


def test_every_method_says_what_it_holds_and_a_plugin_that_does_not_is_not_said_to_hold_nothing():
    said = {name: memory_formula(config) for name, config in list_methods().items()}
    assert {name for name, text in said.items() if text == "nothing"} == {"none", "vanilla"}
    assert "not stated" not in said.values()
    assert said["teacache"] == "2 * numel(hidden) * element_size bytes"  # a formula on the line below

    class Silent(MethodConfig):
        method = "silent"

    assert memory_formula(Silent) == "not stated"


def test_a_paper_has_one_number_wherever_it_is_cited():
    """diffusers 0.42.1 gives TaylorSeer the number of another paper (2403.06923)."""
    numbers: dict[str, set[str]] = {}
    for path in (*PAGES, *(ROOT / "diffcache").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name, number in re.findall(r"\b([A-Z][A-Za-z-]*[A-Z][A-Za-z]*)\s*[(,]\s*arXiv\s+(\d{4}\.\d{5})", text):
            numbers.setdefault(name.lower(), set()).add(number)
    assert len(numbers) >= 6
    assert all(len(found) == 1 for found in numbers.values()), numbers
    assert numbers["taylorseer"] == {"2503.06923"}
