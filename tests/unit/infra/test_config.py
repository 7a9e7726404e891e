"""Command lines: what a person types wrong is told with the remedy, and what they type right is typed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from infra.config import INTERRUPTED, USER_ERROR, ConfigError, RunOptions, hash_config, override, run_entry, to_dict
from infra.dataset import NoSuchTable
from infra.storage import StorageError


@dataclass(frozen=True, kw_only=True)
class Captioner:
    batch_size: int = 4
    engine: Literal["facts", "llava"] = "facts"
    temperature: float | None = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    input: str = "in"
    output: str = "out"
    captioner: Captioner = field(default_factory=Captioner)
    sizes: tuple[int, ...] = (1, 2)
    verbose: bool = False


RECIPES = {"tiny": Job, "large": lambda: Job(captioner=Captioner(batch_size=64))}


class Recorder:
    """A job's main that remembers what it was given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[Job, RunOptions]] = []

    def __call__(self, config: Job, options: RunOptions) -> int:
        self.calls.append((config, options))
        if self.error:
            raise self.error
        return 0


def run(*argv: str, error: BaseException | None = None) -> tuple[int, list[tuple[Job, RunOptions]]]:
    main = Recorder(error)
    return run_entry(argv, prog="job", summary="A job.", recipes=RECIPES, main=main), main.calls


def test_flags_and_overrides_make_one_configuration() -> None:
    code, [(config, options)] = run("--recipe", "large", "--input", "s3://b/x", "--set", "captioner.temperature=none", "--set", "sizes=[3]",
                                    "--set", "verbose=true", "--dry-run", "--tracking", "sqlite:///x.db")
    assert code == 0
    assert config == Job(input="s3://b/x", captioner=Captioner(batch_size=64, temperature=None), sizes=(3,), verbose=True)
    assert options == RunOptions(recipe="large", dry_run=True, tracking="sqlite:///x.db")


@pytest.mark.parametrize(("argv", "told"), [
    (["--recipe", "tinny"], "unknown recipe 'tinny': did you mean 'tiny'?"),
    (["--recipe", "xyz"], "known: tiny, large"),
    (["--set", "captioner.batchsize=3"], "did you mean 'batch_size'?"),
    (["--set", "captoiner.batch_size=3"], "did you mean 'captioner'?"),
    (["--set", "captioner.batch_size=three"], "captioner.batch_size=three: Input should be a valid integer, unable to parse string as an "
                                              "integer; expected a whole number"),
    (["--set", "captioner.engine=gpt"], "should be 'facts' or 'llava'"),
    (["--set", "captioner=3"], "is a group: set one of its fields, e.g. captioner.batch_size"),
    (["--set", "sizes.x=3"], "'sizes' has no parts"),
    (["--set", "sizes=[1, \"a\"]"], "sizes="),
    (["--set", "verbose"], "expected KEY=VALUE"),
])
def test_mistakes_are_told_before_any_work(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, calls = run(*argv)
    assert (code, calls) == (USER_ERROR, [])
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("job: ")


@pytest.mark.parametrize("error", [ValueError("no good"), StorageError("no good"), NoSuchTable("no good"), ConfigError("no good")])
def test_what_a_user_can_mend_is_one_message_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error=error)[0] == USER_ERROR
    assert capsys.readouterr().err == "job: no good\n"


def test_ctrl_c_is_one_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error=KeyboardInterrupt())[0] == INTERRUPTED
    assert capsys.readouterr().err == "\njob: interrupted; the same command again continues\n"


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run(error=KeyError("a bug"))


def test_the_tracking_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    assert run()[1][0][1].tracking == "http://somewhere"
    assert run("--tracking", "http://else")[1][0][1].tracking == "http://else"


def test_a_configuration_has_one_hash() -> None:
    assert hash_config(Job()) == hash_config(to_dict(Job()))
    assert hash_config(Job()) != hash_config(override(Job(), "captioner.batch_size", "5"))
    assert override(Job(), "captioner.batch_size", "5") == replace(Job(), captioner=Captioner(batch_size=5))
