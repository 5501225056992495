"""What the shell completes, asked for by the environment variables by which shells ask."""

import os
import re
import shutil
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import steadyflow as sf
from steadyflow import editing, loading
from steadyflow.cli import app, completion
from steadyflow.solvers import registry

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import completion_names

SHELLS = ("bash", "zsh", "fish")
FREE = ("--call", "--input", "--prompt", "--target", "--source", "--window", "--address", "--model-version")
FREE += ("--guidance", "--nfe")  # a range, and a list of numbers, of `tune`
"""Options whose texts are the user's own."""


def question(shell, line):
    """The environment by which a shell asks what the last word of a line may become."""
    if shell == "bash":
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    else:
        words = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return {"_STEADYFLOW_COMPLETE": f"complete_{shell}", **words}


def values(shell, answer):
    """The values in an answer, without their descriptions."""
    if shell == "zsh":
        return re.findall(r'^(?:_arguments .*\(\()?"([^"]*)"', answer, re.MULTILINE)
    return [line.partition("\t")[0] for line in answer.splitlines() if line]


def complete(line, shell="bash"):
    """What a shell is answered, in this process."""
    done = CliRunner().invoke(app, [], env=question(shell, line), prog_name="steadyflow")
    assert (done.exit_code, done.stderr) == (0, "")
    return values(shell, done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_their_values_are_completed_in_each_shell(shell):
    assert complete("steadyflow sam", shell) == ["sample"]
    assert set(complete("steadyflow runs ", shell)) == {"show", "export"}
    assert "--solver" in complete("steadyflow sample --s", shell)
    assert complete("steadyflow sample --solver dd", shell) == ["ddim", "ddpm"]
    assert complete("steadyflow edit --target 3 --method flow", shell) == ["flow-edit", "flow-align", "flow-opt"]
    assert complete("steadyflow invert --model in", shell) == ["ink"]
    assert complete("steadyflow diagnose --grid ka", shell) == ["karras"]


def test_all_names_of_the_library_are_completed():
    assert set(complete("steadyflow sample --solver ")) == {*sf.solvers.names(), "auto"}
    assert set(complete("steadyflow sample --grid ")) == set(sf.grids.names())
    assert set(complete("steadyflow edit --method ")) == set(editing.names())
    assert set(complete("steadyflow sample --model ")) == {*sf.models.names(), *loading.PIPELINES, "mixture"}


def test_the_names_are_those_of_the_registries():
    """If not, python scripts/completion_names.py writes them."""
    assert completion_names.text() == completion_names.FILE.read_text()


def test_of_several_names_the_last_is_completed_and_none_twice():
    assert complete("steadyflow solvers --names ees27,dd") == ["ees27,ddim", "ees27,ddpm"]
    assert complete("steadyflow tune --against ddim,dd") == ["ddim,ddpm"]


def test_tuned_solvers_of_the_users_own_folder_are_completed(tmp_path, monkeypatch):
    assert completion.TUNED == registry.FOLDER
    (tmp_path / "fast-and-mine.json").write_text("{}")
    monkeypatch.setenv(completion.TUNED, str(tmp_path))
    assert complete("steadyflow sample --solver fas") == ["fast-and-mine"]
    assert complete("steadyflow tune --against fas") == []


def options():
    """(command, option, its context) of each option that takes a text, of each of our own commands."""
    for name, command in typer.main.get_command(app).commands.items():
        if not hasattr(command, "commands"):
            context = command.make_context(name, [], resilient_parsing=True)
            hints = typing.get_type_hints(command.callback)
            for option in command.params:
                if option.opts[0].startswith("--") and "str" in str(hints[option.name]):
                    yield name, option, context


def test_every_option_with_a_list_of_words_completes_the_words_that_its_help_names():
    known = {
        *sf.solvers.names(),
        *sf.grids.names(),
        *editing.names(),
        *sf.models.names(),
        *loading.PIPELINES,
        "mixture",
    }
    seen = set()
    for name, option, context in options():
        flag, found = option.opts[0], [item.value for item in option.shell_complete(context, "")]
        assert bool(found) != (flag in FREE), (name, flag)
        told = re.findall(r"[\w-]+", option.help)
        assert [word for word in found if word not in known and word not in told and flag != "--device"] == [], flag
        seen.add(flag)
    assert set(FREE) <= seen


def test_a_command_that_is_not_there_is_no_error_while_something_is_typed(monkeypatch):
    """`complete` checks that nothing is said beside the answer."""
    monkeypatch.setattr(metadata, "entry_points", lambda **given: metadata.EntryPoints())
    complete("steadyflow lab ru")  # of a package that is not installed
    complete("steadyflow nothing --s")


def test_commands_of_installed_packages_are_completed_without_importing_them(monkeypatch):
    absent = metadata.EntryPoint("greet", "absent_package:greet", "steadyflow.commands")
    entries = metadata.EntryPoints([absent])
    monkeypatch.setattr(metadata, "entry_points", lambda **given: entries.select(**given))
    assert complete("steadyflow gre") == ["greet"]


@pytest.mark.parametrize("line", ["steadyflow ", "steadyflow edit --method ", "steadyflow lab run "])
def test_completion_imports_neither_torch_nor_what_takes_as_long(line):
    code = (
        "import sys\nsys.argv = ['steadyflow']\nfrom steadyflow.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print('loaded:', *{'torch', 'numpy', 'diffusers', 'transformers'} & {*sys.modules})"
    )
    env = {**os.environ, **question("bash", line)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    *completed, loaded = done.stdout.splitlines()
    assert completed
    assert loaded == "loaded:"


@pytest.fixture
def install(monkeypatch, tmp_path):
    """As `steadyflow --install-completion` does in a shell, with a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is then named

    def called(shell):
        done = CliRunner().invoke(app, ["--install-completion", shell], prog_name="steadyflow")
        assert done.exit_code == 0, done.output

    return called


@pytest.mark.parametrize(
    ("shell", "file"),
    [("bash", ".bash_completions/steadyflow.sh"), ("zsh", ".zfunc/_steadyflow"),
     ("fish", ".config/fish/completions/steadyflow.fish")],
)  # fmt: skip
def test_completion_is_installed_for_each_shell(shell, file, install, tmp_path):
    install(shell)
    assert f"_STEADYFLOW_COMPLETE=complete_{shell}" in (tmp_path / file).read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_itself_asks_and_is_answered(install, tmp_path):
    install("bash")
    program = tmp_path / "bin" / "steadyflow"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom steadyflow.cli import main\n\nmain()\n")
    program.chmod(0o755)
    script = """
source ~/.bash_completions/steadyflow.sh
complete -p steadyflow
COMP_WORDS=(steadyflow sample --solver dd) COMP_CWORD=3
_steadyflow_completion steadyflow
echo "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines() == ["complete -o default -F _steadyflow_completion steadyflow", "ddim ddpm"]
