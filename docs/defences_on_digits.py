"""``make defences-table``: what each defence costs on digits, for FedAvg and HFN, three seeds; then who leaks membership.

Finished runs are not repeated. The runs without defence are those of docs/methods_on_digits.py.
"""

import sys

from methods_on_digits import ROOT, ROUNDS, finish

from hyperfed.privacy import membership

RESULTS = ROOT / "results/defences"
MEMBERSHIP = ROOT / "results/membership"
QUICK = [
    "experiment=quick_digits",
    f"rounds={ROUNDS}",
    f"eval.every={ROUNDS}",
    f"checkpoint.every={ROUNDS}",
    "threads=1",
    "finetune.epochs=0",
]
NOISE = (0.01, 0.1, 1.0)
"""Noise multipliers of client-level privacy."""
BY_RECORD = ["model=resnet_gn", "local.epochs=1", "local.batch_size=16"]
SETTINGS = {
    **{f"central-{z:g}": ["privacy=central_dp", "privacy.clip=2", f"privacy.noise_multiplier={z:g}"] for z in NOISE},
    **{f"local-{z:g}": ["privacy=client_dp", "privacy.clip=2", f"privacy.noise_multiplier={z:g}"] for z in NOISE[1:2]},
    "secagg": ["privacy=secagg"],
    "records-none": BY_RECORD,
    "records-1": [*BY_RECORD, "privacy=dp_sgd", "privacy.noise_multiplier=1"],
}
ATTACKED = ("fedavg", "fedper", "hfn", "local")


def main() -> None:
    """Run what is missing."""
    for seed in (1, 2, 3):
        for name, overrides in SETTINGS.items():
            for method in ("fedavg", "hfn"):
                finish(f"{method}-{name}-s{seed}", [f"method={method}", *QUICK, f"seed={seed}", *overrides], RESULTS)
    for method in ATTACKED:
        if not (MEMBERSHIP / f"{method}.json").exists():
            membership.main([f"method={method}", *QUICK, "--runs", "6", "--out", str(MEMBERSHIP / f"{method}.json")])


if __name__ == "__main__":
    sys.exit(main())
