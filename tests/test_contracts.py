"""What holds for the whole tree: who imports whom, what is never called, and how every entry behaves."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT, entry_env, images_dataset, photographs, run_entry

LAYERS = ("infra", "supir_model", "pipelines", "training")
NEVER = {  # layer -> what no file of it imports; DESIGN: pipelines and training meet in files
    "infra": ("pipelines", "training", "supir_model", "ray", "deepspeed"),
    "supir_model": ("pipelines", "training", "infra", "ray", "deepspeed", "mlflow", "s3fs", "boto3", "socket", "http", "urllib",
                    "requests"),
    "pipelines": ("training", "deepspeed", "mlflow"),
    "training": ("pipelines", "mlflow"),
}
ONLY_IN = {  # module -> the files that may import it
    "ray": ("pipelines/runtime/cluster.py", "training/launch.py"),
    "deepspeed": ("training/engines/",),
    "mlflow": ("infra/tracking.py",),
}
HEAVY = ("torch", "ray", "mlflow", "transformers", "diffusers", "deepspeed", "cv2", "s3fs")  # nothing that --help waits for
BROAD = ("pipelines/runtime/worker.py",)  # the one border at which any error becomes a failed row


def sources() -> list[str]:
    """Every Python file of the layers, relative to the root."""
    return sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in Path(ROOT, layer).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse(Path(ROOT, file).read_text(), file)


def imports(file: str) -> set[str]:
    """Dotted names of everything a file imports, at the top or later."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import; the tree imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def calls(file: str) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as written, call) of every call in a file."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_what_they_may(layer: str) -> None:
    wrong = [f"{file} imports {name}" for file in sources() if file.startswith(f"{layer}/") for name in imports(file)
             if name.split(".")[0] in NEVER[layer] and not file.startswith(ONLY_IN.get(name.split(".")[0], ("none",)))]
    assert not wrong, wrong


@pytest.mark.parametrize("module", ONLY_IN)
def test_a_framework_is_touched_in_its_own_place_alone(module: str) -> None:
    wrong = [f"{file} imports {name}" for file in sources() for name in imports(file)
             if name.split(".")[0] == module and not file.startswith(ONLY_IN[module])]
    assert not wrong, wrong


def test_stages_do_not_import_each_other_in_circles() -> None:
    """Also not for types alone, or later: what two of them share stands in a module of its own."""
    files = {file.removesuffix(".py").replace("/", "."): file for file in sources() if file.startswith("pipelines/stages/")}
    graph = {module: {one for name in imports(file) for one in (name, name.rpartition(".")[0]) if one in files}
             for module, file in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_nothing_imports_the_tests() -> None:
    wrong = [file for file in sources() if any(name.split(".")[0] in ("tests", "pytest", "hypothesis") for name in imports(file))]
    assert not wrong, wrong


def test_the_model_reads_no_environment() -> None:
    wrong = [f"{file}: {ast.unparse(node)}" for file in sources() if file.startswith("supir_model/") for node in ast.walk(tree(file))
             if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv")]
    assert not wrong, wrong


def test_there_is_one_broad_except() -> None:
    """What passes every error on (`raise` at its end) hides none and does not count."""
    broad = []
    for file in sources():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
                names = ast.unparse(node.type) if node.type else "everything"
                if any(name in names.replace(",", " ").strip("()").split() for name in ("everything", "Exception", "BaseException")):
                    broad.append(file)
    assert tuple(broad) == BROAD


def test_no_pickled_code_is_run() -> None:
    wrong = []
    for file in sources():
        for name, call in calls(file):
            last = name.rsplit(".", 1)[-1]
            if name == "torch.load" and keyword(call, "weights_only") != "True":
                wrong.append(f"{file}:{call.lineno}: torch.load without weights_only=True")
            if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib") and last in ("load", "loads", "Unpickler"):
                wrong.append(f"{file}:{call.lineno}: {name}")
            if name in ("eval", "exec", "yaml.load", "yaml.unsafe_load") or keyword(call, "allow_pickle") == "True":
                wrong.append(f"{file}:{call.lineno}: {name}")
            if keyword(call, "trust_remote_code") not in (None, "False"):
                wrong.append(f"{file}:{call.lineno}: trust_remote_code")
    assert not wrong, wrong


def test_no_global_seed() -> None:
    """Randomness is an argument. Initial weights, which torch draws from its global generator alone, are made inside `fork_rng`."""
    seeds = ("torch.manual_seed", "random.seed", "np.random.seed", "numpy.random.seed", "torch.cuda.manual_seed_all")
    wrong = []
    for file in sources():
        forked = {id(inner) for node in ast.walk(tree(file)) if isinstance(node, ast.With)
                  and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items) for inner in ast.walk(node)}
        wrong += [f"{file}:{call.lineno}: {name}" for name, call in calls(file) if name in seeds and id(call) not in forked]
    assert not wrong, wrong


def test_files_and_functions_stay_readable() -> None:
    long = [file for file in sources() if len(Path(ROOT, file).read_text().splitlines()) > 400]
    long += [f"{file}:{node.name}" for file in sources() for node in ast.walk(tree(file))
             if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60]
    assert not long, long


# entries

def entries() -> list[str]:
    """Scripts that a person runs: what has a `__main__` guard in pipelines/ and training/."""
    return [file for file in sources() if file.count("/") == 1 and file.startswith(("pipelines/", "training/"))
            and 'if __name__ == "__main__"' in Path(ROOT, file).read_text()]


def test_no_file_beside_an_entry_shadows_a_module() -> None:
    """`python pipelines/caption.py` puts pipelines/ first on the path. (Built-in modules, such as gc, cannot be shadowed.)"""
    standard = set(sys.stdlib_module_names) - set(sys.builtin_module_names)
    installed = set(importlib.metadata.packages_distributions())
    beside = {path.stem if path.is_file() else path.name for folder in {Path(file).parent for file in entries()}
              for path in Path(ROOT, folder).iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}
    assert not (beside - {"__init__"}) & (standard | installed)


def test_every_entry_is_a_script_with_a_main() -> None:
    assert len(entries()) >= 9, entries()
    for file in entries():
        text = Path(ROOT, file).read_text()
        assert text.startswith("#!/usr/bin/env python3\n"), f"{file}: no shebang"
        assert os.access(ROOT / file, os.X_OK), f"{file} is not executable"
        [main] = [node for node in tree(file).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        assert [arg.arg for arg in main.args.args] == ["argv"], file


def test_entries_and_recipes_import_nothing_heavy() -> None:
    recipes = [file for file in sources() if "/recipes" in file]
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in [*entries(), *recipes]]
    code = f"import sys, importlib\nfor name in {names}:\n    importlib.import_module(name)\n" \
           f"    heavy = [one for one in {HEAVY} if one in sys.modules]\n    assert not heavy, (name, heavy)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=entry_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_entry_helps_as_script_as_module_and_from_another_folder(tmp_path: Path) -> None:
    def help_text(how: str, file: str) -> str:
        done = run_entry(file, "--help", how=how, cwd=tmp_path if how == "file" else ROOT)
        assert done.returncode == 0, f"{file} as {how}: {done.stderr}"
        assert "--dry-run" in done.stdout or "--help" in done.stdout, file
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        for how in ("module", "file"):
            list(pool.map(lambda file, how=how: help_text(how, file), entries()))


@pytest.mark.parametrize("entry", entries())
def test_a_mistyped_recipe_or_key_is_told(entry: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(entry.removesuffix(".py").replace("/", ".")).main
    with pytest.raises(SystemExit):
        main(["--help"])
    if "--recipe" in capsys.readouterr().out:
        assert main(["--recipe", "tinny"]) == 2
        assert "unknown recipe 'tinny'" in capsys.readouterr().err
        assert main(["--set", "no.such=key"]) == 2
        assert "unknown key 'no.such'" in capsys.readouterr().err


SECRETS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret-of-s3", "AWS_SESSION_TOKEN": "secret-session",
           "MLFLOW_TRACKING_PASSWORD": "secret-of-mlflow", "HF_TOKEN": "secret-of-hub", "OPENAI_API_KEY": "secret-of-endpoint",
           "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.integration
@pytest.mark.parametrize("entry", entries())
def test_a_dry_run_plans_or_teaches_and_changes_nothing(entry: str, tmp_path: Path) -> None:
    """With a dataset that has images alone and a tracker that is away, and without any input: exit 0 or 2, never a traceback."""
    dataset, _ = images_dataset(str(tmp_path / "corpus"), photographs(3))
    before = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    tracking = ["--tracking", "http://user:secret-in-address@127.0.0.1:9"] if "--tracking" in run_entry(entry, "--help").stdout else []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda flags: dry_run(entry, tmp_path, *flags), ([], ["--input", dataset.store.url, *tracking])))
    after = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert after == before, f"{entry} --dry-run wrote {set(after) - set(before)}"


@pytest.mark.integration
@pytest.mark.parametrize("entry", ["pipelines/curate.py", "training/train_encoder.py"])
def test_a_dry_run_tells_soon_that_storage_is_away(entry: str, tmp_path: Path) -> None:
    dry_run(entry, tmp_path, "--input", "s3://bucket/corpus")


def dry_run(entry: str, folder: Path, *flags: str) -> None:
    """It plans, or refuses with a reason; it prints no secret."""
    done = run_entry(entry, "--dry-run", *flags, cwd=folder, env=SECRETS, timeout_s=120)
    where = f"{entry} {' '.join(flags)}:\n{done.stdout}{done.stderr}"
    assert done.returncode in (0, 2), where
    assert "Traceback" not in done.stderr, where
    assert done.returncode == 0 or len(done.stderr.strip()) > 20, f"a refusal without a reason: {where}"
    assert "secret" not in done.stdout + done.stderr, f"a secret is printed: {where}"
