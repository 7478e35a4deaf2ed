"""The command line as a user meets it: processes, exit codes, what is printed."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paretune.cli import app
from paretune.cli.collecting import loading

STUDY = """\
name: tiny
base: pocket
regime: cpt
target:
  data: {from: json, path: rows.jsonl}
  items: 4
source: {self_probe: {samples: 2, tokens: 16}}
training: {block_length: 32, batch_size: 2}
arms:
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: 2, learning_rate: 5e-3}
budgets: {at: [4ba]}
"""


def paretune(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paretune", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "study.yaml").write_text(STUDY)
    rows = (f'{{"text": "value_{i} = {i} + {i}\\nprint(value_{i})\\n"}}' for i in range(99))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def seconds_of_processor(*arguments: str, cwd: Path) -> tuple[float, str]:
    """What Python took with these arguments, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_answers_at_once(tmp_path: Path) -> None:
    """In half a second of the processor's time; on a slow machine, in 20 starts of bare Python."""
    for _ in range(5):
        bare, _ = seconds_of_processor("-c", "pass", cwd=tmp_path)
        seconds, shown = seconds_of_processor("-m", "paretune", "--help", cwd=tmp_path)
        if at_once := seconds < max(0.5, 20 * bare):
            break
    assert at_once, (seconds, bare)
    for command in ("demo", "recipes", "init", "plan", "run", "status", "report", "export"):
        assert command in shown


def called(*arguments: str) -> str:
    """What a command prints that ends well; in this process, which has imported all it needs."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_study_from_file_to_adapter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = paretune("plan", "study.yaml", cwd=folder)
    assert planned.returncode == 0, planned.stderr
    assert "2 arms" in planned.stdout
    assert "256 tokens (hot)" in planned.stdout
    assert not (folder / "studies").exists(), "a plan leaves nothing behind"

    done = paretune("run", "study.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("256 tokens: target/bits_per_byte") == 2
    assert done.stdout.rstrip().endswith(str(folder / "studies" / "tiny" / "report.html"))
    assert done.stderr == ""

    monkeypatch.chdir(folder)
    assert "2 arms: 2 done" in called("status", "studies/tiny")
    called("export", "studies/tiny", "lora", "--to", "adapter")
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    answer, advice, report = called("report", "studies/tiny").splitlines()
    assert answer.endswith(".")
    assert advice == "which arm to take: paretune advise studies/tiny"
    assert report.startswith("report: ")
    assert answer in done.stdout.splitlines()


def test_recipes_are_listed_and_written(tmp_path: Path) -> None:
    listed = paretune("recipes", cwd=tmp_path)
    assert "pocket-cpt" in listed.stdout
    written = paretune("init", "pocket-cpt", cwd=tmp_path)
    assert "pocket-cpt.yaml is written" in written.stdout
    again = paretune("init", "pocket-cpt", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("error: pocket-cpt.yaml: already there")
    unknown = paretune("init", "pocket-ctp", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "pocket-cpt" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "error: nowhere.yaml: there is no such file"),
        (["plan", "typo.yaml"], "error: typo.yaml, line 11: arms[1].learning_rat: unknown key"),
        (["status", "."], "error: .: no study here"),
        (["report", "missing"], "error: missing: no study here"),
        (["run", "study.yaml", "--device", "cuda:7"], "error: --device cuda:7: not available here"),
        (["export", ".", "arm", "--to", "x"], "error: .: no study here"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, folder: Path
) -> None:
    (folder / "typo.yaml").write_text(STUDY.replace("2, learning_rate: 5e-3", "2, learning_rat: 1"))
    result = paretune(*arguments, cwd=folder)
    assert result.returncode == 2
    assert result.stderr.startswith(message), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_interrupted_run_says_how_to_go_on(folder: Path) -> None:
    import signal

    long = STUDY.replace("4ba", "4ep").replace("name: tiny", "name: long")
    (folder / "long.yaml").write_text(long)
    command = [sys.executable, "-m", "paretune", "run", "long.yaml"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("base:"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "interrupted; the same command goes on from there\n"


def test_a_typo_is_answered_before_anything_heavy_is_read(folder: Path) -> None:
    (folder / "typo.yaml").write_text(STUDY.replace("heldout", "x").replace("items", "itemz"))
    code = (
        "import sys; from paretune.cli import main; sys.argv = ['paretune', 'plan', 'typo.yaml']\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "unknown key; did you mean items?" in result.stderr
    assert result.stdout == "set()\n"


def test_a_place_that_cannot_be_is_named(folder: Path) -> None:
    below = paretune("init", "pocket-cpt", "--out", "rows.jsonl/x.yaml", cwd=folder)
    assert below.returncode == 2
    assert below.stderr.count("\n") == 1
    assert "rows.jsonl" in below.stderr
    assert "a file is where a folder is needed" in below.stderr


def test_a_command_ends_without_a_search_for_garbage(tmp_path: Path) -> None:
    """It took 1.5 s with all libraries loaded. What is not registered after it comes before it."""
    program = "import atexit, gc, sys; from paretune.cli import main; "
    program += "atexit.register(lambda: print('kept', gc.get_freeze_count() > 0)); "
    program += "sys.argv = ['paretune', 'recipes']; main()"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert done.stdout.endswith("kept True\n")


def test_nothing_is_collected_while_modules_load() -> None:
    def fail() -> None:
        with loading():
            assert not gc.isenabled()
            raise ImportError("torch")

    assert gc.isenabled()
    with pytest.raises(ImportError):
        fail()
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()
