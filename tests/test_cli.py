"""The command line as a person meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.main import check_overrides, compose_checked, composed_dict, resumed
from hyperfed.report.runs import read_run
from hyperfed.run.config import identity_hash
from runs import SMALL, composed, small_run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=fedprx"], "method 'fedprx' unknown; did you mean 'fedprox'?"),
        (["dataset=cifar"], "dataset 'cifar' unknown; did you mean 'cifar10"),
        (["experiment=quick"], "experiment 'quick' unknown"),
        (["optim.learning_rate=1"], "field 'optim.learning_rate' unknown; Valid: optim.clip, optim.gamma, optim.lr,"),
        (["hyper=hfn", "hyper.embedding=8"], "field 'hyper.embedding' unknown; did you mean 'hypernet.embedding'?"),
        (["--num-clients", "3"], "'--num-clients' is not an option: settings are written without dashes, num_clients=VALUE."),
        (["--method=hfn"], "'--method=hfn' is not an option: settings are written without dashes, method=VALUE."),
        (["optim.lrr=1"], "field 'optim.lrr' unknown; did you mean 'optim.lr'?"),
        (["hypernet.tile=16"], "hypernet.tile"),
        (["optim.lr=fast"], "optim.lr = 'fast' is not valid"),
        (["optim.lr=-1"], "optim.lr = -1.0 is not valid: must be a number > 0."),
        (["partition.alpha=0"], "partition.alpha = 0.0 is not valid"),
        (["participation=1.5"], "participation = 1.5 is not valid: must be in (0, 1]."),
        (["rounds=0"], "rounds = 0 is not valid: must be an integer >= 1."),
        (["optim.lr_scale.embed=-1"], "optim.lr_scale.embed = -1.0 is not valid"),
        (["finetune.scope=[feet]"], "finetune.scope"),
        (["precision=fp8"], "precision = 'fp8' is not valid"),
        (["on_nan=ignore"], "on_nan = 'ignore' is not valid"),
        (["method=fedprox", "method.mu=abc"], "method.mu = 'abc' is not valid"),
        (["method=hfn", "hypernet.embedding=0"], "hypernet.embedding = 0 is not valid"),
        (["method=hfn,fedprx"], "method 'fedprx' unknown"),
        (["rounds"], "could not be read at 'rounds': missing EQUAL"),
        (["run.dir=~/x"], "could not be read at 'run.dir=~/x': quote a value with special characters twice"),
        (["run.dir=~/x"], "and write $HOME in place of ~."),
        (["method=hfn,fedavg"], "method=hfn,fedavg stands for several runs: add --multirun to 'hyperfed run'."),
        (["dataset=glob(*)"], "dataset=glob(*) stands for several runs: add --multirun"),
        (["optim.lr=interval(0,1)", "--multirun"], "optim.lr=interval(0,1) is not valid"),
        (["hypernet.embedding=8"], "field 'hypernet.embedding' exists only with method=hfn or hyper=hfn."),
        (["privacy.epsilon=8"], "exists only with privacy=central_dp or privacy=client_dp or privacy=dp_sgd."),
        (["privacy.epsilonn=8"], "field 'privacy.epsilonn' unknown; did you mean 'privacy.epsilon'?"),
        (["finetune.scope=head"], "finetune.scope = 'head' is not valid: must be a list such as [head]."),
        (["method=hfn", "hypernet.share=norm"], "hypernet.share = 'norm' is not valid: must be a list such as [norm]."),
        (["optim.milestones=0.5"], "optim.milestones = 0.5 is not valid: must be a list such as [0.5]."),
        (["optim.milestones=[50,75]"], "optim.milestones = 50.0 is not valid: must be in (0, 1)"),
        (["optim.gamma=-1"], "optim.gamma = -1.0 is not valid: must be a number > 0."),
        (["local.steps=0"], "local.steps = 0 is not valid: must be an integer >= 1."),
        (["local.steps=-3"], "local.steps = -3 is not valid: must be an integer >= 1."),
        (["threads=0"], "threads = 0 is not valid: must be an integer >= 1."),
        (["partition.alpha=inf"], "partition.alpha = inf is not valid: must be a finite number > 0"),
        (["partition.alpha=1e308"], "partition.alpha = 1e+308 is not valid: must be a finite number > 0 (at most 1e+300)."),
        (["model.width=0"], "model.width = 0 is not valid: must be an integer >= 1."),
        (["model=mlp", "model.width=abc"], "model.width = 'abc' is not valid: must be an integer >= 1."),
        (["model=mlp", "model.width=3.5"], "model.width = 3.5 is not valid: must be an integer >= 1."),
        (["model=mlp", "+model.foo=3"], "model 'mlp': field 'model.foo' unknown; did you mean 'model.width'? Valid: model.width."),
        (["model=lenet", "+model.foo=3"], "model 'lenet': field 'model.foo' unknown; there are none."),
        (["experiment=quick_cifar10", "dataset=digits", "model=mlp"], "model 'mlp': field 'model.blocks' unknown; Valid: model.width."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *overrides]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.startswith("hyperfed: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["num_clients=5000"], "num_clients = 5000 is not valid"),
        (["dataset=mnist", "data.root={tmp}"], "train-images-idx3-ubyte.gz does not exist"),
        (["method=hfn", "model=mlp"], "hypernet.tile = 16 divides no 3x3 convolution"),
        (["model=lenet"], "model 'lenet' needs images of at least 16x16"),
        (["device=cuda:99"], "device 'cuda:99' is not available"),
        (["device=tpu"], "device = 'tpu' is not valid"),
        (["resume={tmp}"], "is not a run's folder"),
    ],
)
def test_what_only_the_data_can_refuse_is_one_sentence_too(overrides: list[str], words: str, tmp_path: Path) -> None:
    """A real process, as a shell sees it; nothing half-written stays behind."""
    arguments = [o.replace("{tmp}", str(tmp_path / "none")) for o in overrides]
    small = [s for s in SMALL if s.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    if "method=hfn" not in overrides:
        small = [s for s in small if not (s == "model=mlp" and "model=lenet" in overrides)]
    command = [sys.executable, "-m", "hyperfed.main", *small, *arguments, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "a", "-o", "{tmp}", "b"], "'a' is not a run's folder"),
        (["attack", "fig4", "-o", "{tmp}", "scale=huge"], "scale 'huge' unknown"),
        (["deploy", "server", "--dir", "{tmp}", "method=fedavg", "--certs", "{tmp}", "rounds=1"], "ca.crt is missing"),
    ],
)
def test_words_may_follow_options(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([a.replace("{tmp}", str(tmp_path)) for a in arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["compare", "a", "--nope"], ["list", "methods"], ["attack", "fig4", "--nope"]])
def test_an_unknown_argument_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"unknown argument {arguments[-1]!r}" in capsys.readouterr().err


def test_resume_names_the_setting_that_differs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    small_run(folder, "rounds=1")
    with pytest.raises(UserError, match=r"resume: optim.lr = 0.2 differs from the run's 0.1"):
        resumed(folder, [f"resume={folder}", "optim.lr=0.2"])
    assert resumed(folder, [f"resume={folder}", "checkpoint.keep=5"])["checkpoint"]["keep"] == 5
    with pytest.raises(UserError, match=r"resume: method.name = 'fedper' differs"):
        resumed(folder, ["method=fedper"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=hfn", "hypernet.embedding = 64 differs from the run's None"),
        ("scale=paper", "num_clients = 100 differs from the run's 6"),
        ("experiment=table2", "data.fraction = 0.2 differs from the run's 1.0"),
        ("run.dir=elsewhere", "run.dir = 'elsewhere' differs from the run's"),
        ("rounds=30", "rounds = 30 differs from the run's 1"),
    ],
)
def test_resume_refuses_what_a_choice_sets_elsewhere(override: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(composed(tmp_path, "rounds=1")))
    with pytest.raises(UserError, match=words):
        resumed(tmp_path, [f"resume={tmp_path}", override])


def test_resume_takes_the_choices_the_run_was_made_with(tmp_path: Path) -> None:
    """Some settings follow from the data set (90 rounds of one, 150 of another): from the run's, not from the default one."""
    made = ["dataset=cifar10", "method=hfn", "scale=paper", "seed=7"]
    saved = composed_dict(compose_checked([*made, f"run.dir={tmp_path}"]))
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert (saved["rounds"], saved["hypernet"]["embedding"]) == (150, 128)
    for given in (["method=hfn", "scale=paper"], made, ["method=fedavg", "hyper=hfn"], [f"run.dir={tmp_path}", "device=cpu"]):
        again = resumed(tmp_path, [f"resume={tmp_path}", *given])
        assert identity_hash(again) == identity_hash(saved) and again["run"]["dir"] == str(tmp_path)
    with pytest.raises(UserError, match="hypernet"):
        resumed(tmp_path, ["method=fedavg"])


def test_compare_prints_a_table_and_draws_two_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("fedavg", "local"):
        small_run(tmp_path / method, f"method={method}")
    assert main(["compare", str(tmp_path / "fedavg"), str(tmp_path / "local"), "-o", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "FedAvg" in text and "Local" in text and "0 B" in text
    for name in ("accuracy_over_rounds.png", "accuracy_over_bytes.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "| FedAvg |" in (tmp_path / "out/comparison.md").read_text()


def test_a_kept_run_is_read_as_the_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path / "fedper", "method=fedper", "rounds=1")
    assert main(["keep", str(tmp_path / "fedper"), "-o", str(tmp_path / "results")]) == 0
    a, b = read_run(tmp_path / "fedper"), read_run(tmp_path / "results/fedper.json")
    assert (a.label, a.evaluations, a.per_round) == (b.label, b.evaluations, b.per_round)
    assert str(tmp_path) not in (tmp_path / "results/fedper.json").read_text()
    (tmp_path / "bad.json").write_text("{")
    assert main(["compare", str(tmp_path / "bad.json")]) == 2
    assert "is not a kept run" in capsys.readouterr().err


def test_compare_tells_runs_of_one_method_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        str(small_run(tmp_path / name, f"seed={seed}", f"model={model}").folder) for name, seed, model in (("a", 1, "mlp"), ("b", 2, "mlp"))
    ]
    assert main(["compare", *runs, "-o", str(tmp_path / "out")]) == 0
    assert "| FedAvg (seed 1) |" in (table := (tmp_path / "out/comparison.md").read_text()) and "| FedAvg (seed 2) |" in table
    runs[1] = str(small_run(tmp_path / "c", "seed=1", "model=resnet", "rounds=1").folder)
    assert main(["compare", *runs, "-o", str(tmp_path / "out")]) == 0
    assert "| FedAvg (model.name mlp" in (table := (tmp_path / "out/comparison.md").read_text()) and "| FedAvg (model.name resnet" in table
    facts = json.loads((tmp_path / "c/run.json").read_text())
    (tmp_path / "c/run.json").write_text(json.dumps(facts | {"versions": facts["versions"] | {"method": 7}}))
    capsys.readouterr()
    assert main(["compare", *runs, "-o", str(tmp_path / "out")]) == 2
    assert "c with revision 7" in capsys.readouterr().err


def test_a_finished_run_says_that_nothing_was_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["run", *SMALL, f"run.dir={tmp_path / 'a'}", "data.root=nowhere"]
    assert main(arguments) == 0 and "nothing was run" not in capsys.readouterr().out
    assert "data.root = 'nowhere' is not read: digits comes with the installation." in caplog.text
    before = (tmp_path / "a/metrics.jsonl").read_bytes()
    assert main(arguments) == 0
    assert "complete before, nothing was run (delete its folder to play it anew)" in capsys.readouterr().out
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == before


def test_a_reader_that_goes_leaves_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m hyperfed.cli list | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_compare_says_what_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "is not a run's folder: config.json is missing" in told and told.count("\n") == 1


@pytest.mark.parametrize("command", ["compare", "keep"])
def test_folders_without_a_run_are_passed_over(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``compare runs/*`` meets what other commands put beside the runs; a name that is mistyped is no such folder."""
    small_run(tmp_path / "runs/a", "rounds=1")
    (tmp_path / "runs/comparison").mkdir()
    (tmp_path / "runs/refused/states").mkdir(parents=True)
    folders = [str(p) for p in sorted((tmp_path / "runs").iterdir())]
    assert main([command, *folders, "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].startswith("hyperfed: passed over: ") and "comparison' is not a run's folder" in told[0]
    assert main([command, *folders, str(tmp_path / "runs/typo"), "-o", str(tmp_path / "out")]) == 2
    assert "typo' is not a run's folder" in capsys.readouterr().err


def test_list_has_a_line_for_everything_registered(capsys: pytest.CaptureFixture[str]) -> None:
    from hyperfed.data import DATASETS, PARTITIONS
    from hyperfed.methods import METHODS
    from hyperfed.models import MODELS

    assert main(["list"]) == 0
    first_words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {*METHODS, *MODELS, *DATASETS, *PARTITIONS, "hfn"} <= first_words


def test_help_fits_a_screen_and_shows_three_examples() -> None:
    done = subprocess.run([sys.executable, "-m", "hyperfed.main", "--help"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 30 and sum(line.strip().startswith("hyperfed run ") for line in lines) >= 3


def test_multirun_plays_every_combination(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hyperfed.main", *SMALL, "-m", "method=fedavg,fedper", "rounds=1", f"run.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    configs = [json.loads(p.read_text())["method"]["name"] for p in tmp_path.glob("*/config.json")]
    assert sorted(configs) == ["fedavg", "fedper"] and not (tmp_path / "multirun.yaml").exists()


def test_multirun_goes_on_after_a_run_that_diverged_and_names_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hyperfed.main", *SMALL, "-m", "optim.lr=1e30,0.1", "rounds=1", f"run.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1] == "hyperfed: 1 of 2 runs did not end well: optim.lr=1e+30 (exit code 3)."
    assert "Traceback" not in done.stderr
    rates = [json.loads((p.parent / "config.json").read_text())["optim"]["lr"] for p in tmp_path.glob("*/clients.csv")]
    assert sorted(rates) == [0.1, 1e30]


def test_hfn_is_fedavg_over_a_hypernetwork() -> None:
    short, long = (composed_dict(compose_checked(o)) for o in (["method=hfn"], ["method=fedavg", "hyper=hfn"]))
    assert short == long


def test_good_overrides_pass() -> None:
    check_overrides(["method=glob(fedp*)", "seed=1,2"], multirun=True)
    check_overrides(["method=hfn", "hypernet.embedding=8", "optim.lr_scale.embed=0"])


def test_data_preparation_draws_the_clients_labels(tmp_path: Path) -> None:
    from hyperfed.dataset_preparation import prepare

    picture, table = prepare(["dataset=digits", "num_clients=5", f"run.root={tmp_path}", f"data.cache={tmp_path / 'cache'}"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert table.read_text().count("\n") >= 6


def test_each_division_of_the_data_has_a_picture_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hyperfed.dataset_preparation import main as prepare

    common = ["dataset=digits", f"run.root={tmp_path}", f"data.cache={tmp_path / 'cache'}"]
    for settings in (["partition.alpha=0.1"], ["partition.alpha=10"], ["partition.alpha=10", "data.fraction=0.5"], []):
        assert prepare([*common, *settings]) == 0
    names = {"alpha0.1-", "alpha10.0-", "alpha10.0-fraction0.5-", ""}
    assert {p.name for p in (tmp_path / "data").glob("*.md")} == {f"digits-dirichlet-{name}20-s1.md" for name in names}
    capsys.readouterr()
    assert prepare(["dataset=digits", "run.root=/dev/null"]) == 2
    assert "run.root = '/dev/null' is not valid: must be a folder" in capsys.readouterr().err
