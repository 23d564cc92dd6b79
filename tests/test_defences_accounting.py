"""Accounting: epsilons that others have computed, and one sentence for what no epsilon can be given for."""

from math import inf

import pytest

from hyperfed.core import UserError
from hyperfed.defences import accountant
from hyperfed.privacy import budget

ACCOUNTABLE = "is not valid: must be 0 (no noise, no guarantee) or from 0.001 to 10000"


def test_gaussian_composition_is_exact() -> None:
    """Sensitivity 1, deviation 1, delta 1e-5: epsilon 4.3772 (Balle and Wang's analytic Gaussian mechanism); T-fold is noise / sqrt(T)."""
    assert accountant.gaussian(2.0, 1, 1e-5) == pytest.approx(4.3772, abs=1e-3)
    assert accountant.gaussian(8.0, 16, 1e-5) == accountant.gaussian(2.0, 1, 1e-5)


def test_dp_sgd_agrees_with_other_accountants() -> None:
    """q = 128/480, 368 steps, delta 1e-4: opacus has 14.5 (Renyi) and 13.3 (PRV, tight) at sigma 2, 5.8 and 5.3 at 4."""
    assert 13.3 <= accountant.sampled_examples(2.0, 128 / 480, 368, 1e-4) < 15.5
    assert 5.3 <= accountant.sampled_examples(4.0, 128 / 480, 368, 1e-4) < 6.0


def test_sampling_helps_only_where_it_is_hidden() -> None:
    few = accountant.sampled_cohorts(4.0, 10, 1000, 30, 1e-5)
    assert few < 0.5 * accountant.gaussian(4.0, 30, 1e-5)
    assert accountant.sampled_cohorts(4.0, 1000, 1000, 30, 1e-5) == accountant.gaussian(4.0, 30, 1e-5)


def test_a_wanted_epsilon_gives_its_multiplier() -> None:
    z = accountant.multiplier(8.0, lambda z: accountant.gaussian(z, 30, 1e-5))
    assert 7.9 < accountant.gaussian(z, 30, 1e-5) <= 8.0
    with pytest.raises(UserError, match=r"privacy.epsilon = 1e-09 is not valid"):
        accountant.multiplier(1e-9, lambda z: accountant.gaussian(z, 30, 1e-5))


def test_the_budget_command_answers_both_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(["--noise-multiplier", "4", "--clients", "1000", "--rate", "0.01", "--times", "30"]) == 0
    assert f"epsilon {accountant.sampled_cohorts(4.0, 10, 1000, 30, 1e-5):.4g} at delta 1e-05" in capsys.readouterr().out
    assert budget.main(["--defence", "client_dp", "--epsilon", "4.3772", "--times", "1"]) == 0
    assert "noise multiplier 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--noise-multiplier", "1", "--clients", "10"], "the epsilon of central_dp depends on the sampling rate: give --rate"),
        (["--noise-multiplier", "1", "--epsilon", "1"], "give either --noise-multiplier or --epsilon"),
        (["--epsilon", "1", "--rate", "0.1"], "--clients = None is not valid"),
        *((["--noise-multiplier", z, "--defence", "client_dp"], ACCOUNTABLE) for z in ("nan", "inf", "-1", "1e-320")),
        *(
            (["--epsilon", e, "--defence", "client_dp"], f"--epsilon = {e} is not valid: must be a finite number > 0")
            for e in ("nan", "inf")
        ),
        (["--epsilon", "1", "--defence", "dp_sg"], "defence 'dp_sg' unknown; did you mean 'dp_sgd'?"),
    ],
)
def test_a_budget_question_that_lacks_something_is_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as problem:
        budget.main(arguments)
    assert words in str(problem.value)


def test_no_noise_is_no_guarantee(capsys: pytest.CaptureFixture[str]) -> None:
    assert accountant.gaussian(0.0, 1, 1e-5) == accountant.sampled_examples(0.0, 0.1, 1, 1e-5) == inf
    budget.main(["--noise-multiplier", "0", "--defence", "client_dp"])
    assert "epsilon infinite" in capsys.readouterr().out


@pytest.mark.parametrize("z", [accountant.LEAST, accountant.CEILING])
def test_every_accountable_multiplier_has_an_epsilon(z: float) -> None:
    """At both ends: positive, finite, and growing with the number of messages, however many."""
    for spent in (lambda n: accountant.gaussian(z, n, 1e-5), lambda n: accountant.sampled_examples(z, 0.1, n, 1e-5)):
        epsilons = [spent(n) for n in (1, 1000, 10**6)]
        assert epsilons == sorted(set(epsilons)) and epsilons[0] > 0 and epsilons[-1] < inf
