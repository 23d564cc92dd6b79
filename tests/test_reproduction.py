"""A run beside a paper's number: the curve and its JSON say what the run's files say."""

import json
from pathlib import Path

from hyperfed.report.reproduction import main


def test_picture_and_numbers_of_a_run(tmp_path: Path) -> None:
    """Two evaluations, one visit of 100 elements each way."""
    from PIL import Image

    run = tmp_path / "run"
    run.mkdir()
    config = {
        "run": {"name": None}, "method": {"name": "pfedhn"}, "dataset": {"name": "digits"}, "partition": {"name": "pathological"},
        "hypernet": None, "num_clients": 50, "participation": 0.02, "rounds": 10, "seed": 1, "precision": "fp32",
        "model": {"name": "mlp"}, "local": {"epochs": 1}, "data": {"fraction": 1.0},
    }  # fmt: skip
    (run / "config.json").write_text(json.dumps(config))
    lines = [
        {"round": n, "train_loss": 1.0, "before": {"weighted": a, "mean": a, "std": 0.1, "p10": a / 2, "worst": 0.0}, "after": None,
         "trainable": 200 * n, "buffers": 0, "extra": 0, "bytes": 800 * n, "seconds": n, "cpu_seconds": n}
        for n, a in ((0, 0.1), (5, 0.625))
    ]  # fmt: skip
    (run / "run.json").write_text('{"identity": "1", "versions": {"hyperfed": "0"}}')
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = "round,client,direction,trainable,buffers,extra,bytes\n"
    (run / "ledger.csv").write_text(header + "5,3,down,100,0,0,400\n5,3,up,100,0,0,400\n")
    assert main([str(run), "--paper", "88.38", "--out", str(tmp_path / "new" / "curve")]) == 0
    found = json.loads((tmp_path / "new" / "curve.json").read_text())
    assert found["curve"] == [[0, 10.0], [5, 62.5]] and found["elements_per_visit"] == 200
    assert (found["rounds_played"], found["rounds"], found["weighted_percent"], found["paper_percent"]) == (5, 10, 62.5, 88.38)
    with Image.open(tmp_path / "new" / "curve.png") as image:
        assert image.format == "PNG" and max(image.size) <= 2500
