"""README.md and docs/: narrow lines and tables, links and files that exist, commands that parse, plans that are quoted right."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from places import CONFIGS, LAUNCH, PACKAGE, ROOT, SUPPORT
from test_layout import ORDER

from mtjudge_jax.cli import COMMANDS
from mtjudge_jax.config import Config, flatten

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
LINE, README_LINES, COLUMNS = 120, 120, 6
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
# Files that a page speaks of and that are not in the repository under that name: a user, a command or a data set makes them.
NOT_HERE = {
    "__main__.py",
    "SeeTRUE.csv", "all_data.json", "config.json", "configs/mine.py", "images.zip", "make_rows.py", "metrics.jsonl", "mine.py",
    "mine/rows.jsonl", "report.html", "report.md", "runs/demo/report.html", "runs/pod.lock", "contact_sheet.png",
    "comparison.md", "comparison.html", "comparison.json", "eval/NAME.json", "NAME.json", "eval/NAME.predictions.jsonl",
    "NAME.predictions.jsonl", "samples.jsonl", "~/.sky/config.yaml", "trackers.json", "rollouts/step_000020.jsonl",
    # Of a model folder:
    "processor_config.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.json", "chat_template.jinja", "additional_chat_templates/default.jinja", "vocab.json", "merges.txt",
}  # fmt: skip


def prose(page: Path) -> str:
    """A page without its blocks of code, line for line."""
    return FENCE.sub(lambda block: "\n" * block.group().count("\n"), page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_and_tables_are_narrow(page):
    lines = prose(page).splitlines()
    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if len(line) > LINE] == []
    rows = [line for line in lines if line.startswith("|")]
    assert [row for row in rows if re.sub(r"`[^`]*`", "", row).strip().strip("|").count("|") >= COLUMNS] == []


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= README_LINES and max(map(len, lines)) <= LINE


# What a page names


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def is_path(text: str) -> bool:
    """Whether code in a sentence is the name of a file or a folder: it has no spaces, and an ending or a known first folder."""
    tops = ("mtjudge_jax/", "configs/", "launch/", "tests/", "benchmarks/", "docs/", ".ci/")
    endings = r"[\w./~-]*\w\.(py|md|sh|yaml|yml|toml|txt|jsonl?|html|jinja|csv|npz|png|zip|lock)"
    return not re.search(r"[\s*<>$=:]", text) and (text.startswith(tops) or bool(re.fullmatch(endings, text)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_on_a_page_exist(page):
    named = {text for text in CODE.findall(prose(page)) if is_path(text)} - NOT_HERE
    named = {name for name in named if not name.startswith(("runs/", "gs://"))}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def tree() -> list[tuple[str, str]]:
    """(path, description) of each line of the README's file tree."""
    text = next(text for text in blocks(README, "text") if text.startswith("mtjudge_jax/"))
    out = []
    for line in text.splitlines():
        indent, name, description = re.fullmatch(r"( *)(\S+) +(.*)", line).groups()
        out.append((f"mtjudge_jax/{name}" if indent else name, description))
    return out


def test_the_file_tree_is_the_real_one():
    listed = {path.rstrip("/") for path, _ in tree()}
    folders = {f"mtjudge_jax/{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    folders |= {"mtjudge_jax", "configs", "launch", "docs", "benchmarks", "tests"}
    assert folders - listed == set(), "folders without a line in the README's tree"
    assert [path for path in listed if not (ROOT / path).exists()] == []
    for path, description in tree():
        for name in re.findall(r"[\w/]+\.(?:py|sh|md)|\w+(?:/\w+)*/(?=\W|$)", description):
            places = (ROOT, PACKAGE, ROOT / path)
            assert name == "__main__.py" or any((place / name).exists() for place in places), f"{path}: {name}"


def test_the_readme_says_where_things_are():
    """Each question of a reader, and the file or folder that holds the answer."""
    text = "\n".join(f"{path} {description}" for path, description in tree())
    answers = {
        "loss": ("rl/loss.py", "def grpo_loss"),
        "reward": ("tasks/reward.py", "def reward_of"),
        "resized": ("data/images.py", "def "),
        "digest": ("checkpoint/digest.py", "def digest"),
        "reader": ("prepare/readers/__init__.py", "READERS"),
    }
    for word, (path, inside) in answers.items():
        assert any(word in line and path.removesuffix("__init__.py") in line for line in text.splitlines()), word
        assert inside in (PACKAGE / path).read_text(), path
    assert any("a pod starts" in line and "launch/tpu_create.sh" in line for line in text.splitlines())


@pytest.mark.parametrize("folder", ["mtjudge_jax", "configs", "launch", "tests", "benchmarks"])
def test_pages_named_in_the_code_exist(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".sh", ".yaml", ".jinja"):
            for name in re.findall(r"\bdocs/\w+\.md", path.read_text()):
                assert (ROOT / name).exists(), f"{path} names {name}"


def test_the_page_of_the_fields_is_that_of_the_source():
    """Otherwise: python docs/write_fields.py"""
    spec = importlib.util.spec_from_file_location("write_fields", DOCS / "write_fields.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "fields.md").read_text() == module.page()
    named = [line.split(":")[0] for text in blocks(DOCS / "fields.md", "python") for line in text.splitlines() if line[0] != "#"]
    assert {name.rpartition(".")[2] for name in flatten(Config())} <= set(named) and "flipped" in named


def test_the_tables_of_the_results_are_those_of_the_study():
    """Otherwise: python docs/write_results.py"""
    spec = importlib.util.spec_from_file_location("write_results", DOCS / "write_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page, seeds = (DOCS / "results.md").read_text(), module.read()
    assert module.written(page, seeds) == page and set(re.findall(r"<!-- table (.*?) -->", page)) == set(module.COLUMNS)
    assert {"off_the_shelf", "mt_rl_judge"} <= set(seeds)
    scores = [{"a": {"m": "0.5"}, "b": {"m": "0.25"}}, {"a": {"m": "1"}, "b": {"m": ""}}]
    assert module.cell(scores, ("a", "b"), "m") == "0.69 (0.38-1.00)" and module.cell(scores[:1], ("a", "b"), "m", min) == "0.25"


def test_the_page_of_the_design_has_the_order_of_imports():
    assert blocks(DOCS / "design.md", "text")[0].split() == ORDER


# Commands


class Line(NamedTuple):
    page: str
    words: tuple[str, ...]


def without_heredocs(text: str) -> str:
    return re.sub(r"(<<'(\w+)')\n.*?^\2$", r"\1", text, flags=re.M | re.S)


@cache
def lines() -> tuple[Line, ...]:
    """Every simple command of the bash blocks, without comments and redirections, exported variables in place."""
    out = []
    for page in PAGES:
        values = {"USER": "me"}
        fill = partial(re.sub, r"\$\{?(\w+)(?:%%/\*)?\}?", lambda name, values=values: values.get(name[1], name[1]))
        for block in blocks(page, "bash"):
            for line in without_heredocs(block).replace("\\\n", " ").splitlines():
                line = fill(re.sub(r"\$\(.*\)", "VALUE", line))
                lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
                lexer.whitespace_split = True
                command = []
                for word in [*lexer, ";"]:
                    if word in ("&&", "||", ";", "|"):
                        out += [Line(name_of(page), tuple(command))] if command else []
                        command = []
                    else:
                        command.append(word)
                if line.startswith("export "):
                    values |= dict(word.split("=", 1) for word in out[-1].words[1:])
    return tuple(out)


def of_mtjudge() -> list[Line]:
    """The `mtjudge` commands, those behind the `--` of a script of launch/ included."""
    out = []
    for page, words in lines():
        rest = words[words.index("--") + 1 :] if words[0].startswith("launch/") and "--" in words else words
        text = shlex.split(" ".join(rest)) if len(rest) == 1 and " " in rest[0] else list(rest)
        if text and text[0] == "mtjudge":
            out.append(Line(page, tuple(text)))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What commands on the pages take for granted: the configs, and those of the user's that the pages show."""
    place = tmp_path_factory.mktemp("user")
    shutil.copytree(CONFIGS, place / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CONFIGS / "mt_rl_judge.py", place / "configs" / "mine.py")
    (place / "readme_config.py").write_text(next(text for text in blocks(README, "python") if "get_config" in text))
    (place / "mine.py").write_text(next(text for text in blocks(DOCS / "tasks_and_rewards.md", "python") if "get_config" in text))
    return place


def run(command: str, argvs: list[list[str]], folder: Path) -> list[str]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ended = subprocess.run(
        [sys.executable, SUPPORT / "parse_commands.py", command],
        input=json.dumps(argvs), capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, folder):
    """With the real flags; a config must pass the checks of a run too."""
    known = [line for line in of_mtjudge() if line.words[1] == command]
    assert known, f"no page shows mtjudge {command}"
    argvs = [list(line.words[2:]) for line in known]
    argvs += [[w.replace("mine.py", "readme_config.py") for w in argv] for argv in argvs if "--config=mine.py" in argv]
    bad = {" ".join(argv): why for argv, why in zip(argvs, run(command, argvs, folder), strict=True) if why}
    assert bad == {}


def test_bad_commands_are_noticed(folder):
    argvs = [["--confg=x"], ["--config=configs/none.py"], ["--config=configs/demo.py", "--config.optim.lr=-1"], ["word"]]
    assert all(run("train", argvs, folder))


def test_every_command_is_one_of_the_program():
    assert {line.words[1] for line in of_mtjudge()} == set(COMMANDS)


def table_rows(page: Path, head: str) -> list[list[str]]:
    """Cells of the table whose first cell is `head`."""
    text = prose(page)
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]*\|\n((?:\|.*\n)*)", text, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def not_run() -> set[str]:
    return {name for row in table_rows(DOCS / "development.md", "not run by a test") for name in CODE.findall(row[0])}


def test_all_else_is_listed_as_not_run():
    tested = {"mtjudge", "python"}  # python: tests/e2e/test_own_task_page.py
    used = {line.words[0] for line in lines() if not line.words[0].startswith("launch/")} - tested
    used = {word for word in used if not re.match(r"\w+=", word)}
    assert used - not_run() == set(), "neither parsed by a test nor listed in docs/development.md"
    assert not_run() - used - {"python3", "ssh-add", "mkdocs", "."} == set(), "listed in docs/development.md, on no page"


def of_scripts() -> list[Line]:
    return [line for line in lines() if line.words[0].startswith("launch/")]


@pytest.mark.parametrize("line", of_scripts(), ids=lambda line: line.words[0])
def test_scripts_have_the_flags(line):
    script = ROOT / line.words[0]
    assert script.parent == LAUNCH and os.access(script, os.X_OK)
    head = script.read_text().split("\nset -euo", 1)[0]
    flags = [word.split("=")[0] for word in line.words[1 : line.words.index("--") if "--" in line.words else None]]
    assert [flag for flag in flags if flag.startswith("-") and not re.search(rf"{flag}\b", head)] == []


def test_each_command_is_run_by_a_test():
    rows = dict(table_rows(DOCS / "development.md", "command"))
    assert set(rows) == {f"`mtjudge {command}`" for command in COMMANDS} | {"`launch/`"}
    for command, tests in rows.items():
        word = command.strip("`").removeprefix("mtjudge ").rstrip("/")
        assert all(word in (ROOT / path).read_text() for path in CODE.findall(tests)), command


def test_modules_and_scripts_in_sentences_exist():
    for page in PAGES:
        for module in re.findall(r"python -m (mtjudge_jax[\w.]*)", page.read_text()):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    assert '"--peer"' in (ROOT / "benchmarks/grpo_step.py").read_text()


def test_rows_of_your_own_can_be_prepared(tmp_path):
    """The block of docs/data.md, run as it is."""
    block = next(text for text in blocks(DOCS / "data.md", "bash") if "rows.jsonl" in text)
    (tmp_path / "mtjudge_jax").symlink_to(PACKAGE)
    program = f'mtjudge() {{ "{sys.executable}" -m mtjudge_jax.cli "$@"; }}\n'
    ended = subprocess.run(["bash", "-ec", program + block], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "4 records in data/mine" in ended.stdout


# Plans


def plan_figures(text: str) -> list[str]:
    """GB on a device, of how many, seconds of a step and hours of the config's steps, rounded as in the tables."""
    peak = max(float(number) for number in re.search(r"^  peak +(.*)$", text, re.M)[1].split())
    memory = re.search(r"^  of (\S+) ", text, re.M)[1]
    seconds = re.search(r"^  roofline, s .* (\S+)$", text, re.M)[1]
    hours = re.search(r"at least (\S+) hours", text)[1]
    return [f"{peak + 1e-9:.1f}", f"{float(memory) + 1e-9:.1f}", f"{float(seconds):.0f}", hours]


@cache
def plans() -> dict[str, list[str]]:
    """Figures by the argument of configs/mt_rl_judge.py."""
    texts = [path.read_text() for path in sorted((DOCS / "plans").glob("*.txt"))]
    return {re.search(r"mt_rl_judge\.py:(\S+)", text)[1]: plan_figures(text) for text in texts}


def test_the_table_of_plans_has_their_figures():
    rows = table_rows(DOCS / "plan.md", "run")
    found = {}
    for run_, chips, memory, step, hours, link in rows:
        found[CODE.search(run_)[1]] = [*memory.split(" of "), step.removesuffix(" s"), hours.removesuffix(" hours")]
        text = (DOCS / re.search(r"\((.*)\)", link)[1]).read_text()
        assert CODE.search(run_)[1] in text.splitlines()[0] and f" {chips} devices, mesh" in text
    assert found == plans()


def test_the_table_of_gpus_has_the_figures_of_its_plans():
    """And each plan has the flags of the line on the page that the row names."""
    rows = table_rows(DOCS / "gpus.md", "line")
    written = {words[next(i for i, word in enumerate(words) if word.startswith("--workdir="))]: words
               for page, words in of_mtjudge() if page == name_of(DOCS / "gpus.md") and "train" in words}  # fmt: skip
    assert len(rows) == len(written) == len(list((DOCS / "plans" / "gpus").glob("*.txt")))
    for line, count, memory, step, link in rows:
        text = (DOCS / re.search(r"\((.*)\)", link)[1]).read_text()
        assert [*memory.split(" of "), step.removesuffix(" s")] == plan_figures(text)[:3]
        assert f"h100:{count.split(' x ')[0]}: " in text
        words = [word for word in written[f"--workdir={CODE.search(line)[1]}"] if word.startswith("--config")]
        flags = {word.partition("=")[0]: word for word in words}
        assert set(flags.values()) == {word for word in text.splitlines()[0].split() if word.startswith("--config")}


def test_the_config_quotes_the_plans():
    quoted = re.findall(r"^    (\S+,\S+) +(\S+) +(\S+) +(\S+) s", (CONFIGS / "mt_rl_judge.py").read_text(), re.M)
    assert {name: list(rest) for name, *rest in quoted} == {name: figures[:3] for name, figures in plans().items()}


def test_the_plan_shown_is_one_of_the_files():
    shown = blocks(DOCS / "plan.md", "text")[0]
    assert shown in [path.read_text() for path in (DOCS / "plans").glob("*.txt")]


# The site


def test_every_page_is_in_the_site():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    nav = [name for entry in settings["nav"] for name in entry.values()]
    assert sorted(nav) == sorted(["index.md", *(str(page.relative_to(DOCS)) for page in PAGES if page != README)])
    assert "search" in settings["plugins"]
