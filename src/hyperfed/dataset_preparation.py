"""``python -m hyperfed.dataset_preparation dataset=cifar10``: fill the cache ahead of time, draw how labels fall to clients."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hyperfed.main import check_overrides, compose_checked, composed_dict, guarded

USAGE = """Fill the data cache ahead of time and draw the label distribution of the clients.

  python -m hyperfed.dataset_preparation dataset=cifar10 data.root=DIR
  python -m hyperfed.dataset_preparation dataset=cifar10 partition=pathological num_clients=50

Settings are those of 'hyperfed run'; the picture and the table go to run.root (default: runs) /data."""


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default, as far as they decide what a client gets."""
    return {f.name: v for f in fields(settings) if (v := getattr(settings, f.name)) != f.default and f.name not in ("root", "cache")}


def prepare(overrides: Sequence[str]) -> tuple[Path, Path]:
    """Decode, verify the cache's checksums, and write the picture and the table of labels per client; returns their paths."""
    from hyperfed.core.files import write_text
    from hyperfed.data import label_counts, load_dataset, verify_cache
    from hyperfed.report.labels import label_table, plot_label_distribution
    from hyperfed.run.build import make_clients
    from hyperfed.run.config import make_config, writable

    check_overrides(overrides)
    config = make_config(composed_dict(compose_checked(list(overrides))))
    folder = writable("run.root", Path(config.run.root)) / "data"
    dataset = load_dataset(config.dataset["name"], config.data.root, config.data.cache)
    cache = verify_cache(dataset.name, config.data.root, config.data.cache)
    print(f"{dataset.name}: {len(dataset.labels):,} images {dataset.images.shape[1:]}, cached and verified in {cache}")
    counts = label_counts(dataset.labels, make_clients(config, dataset), dataset.num_classes)
    special = "".join(f"-{name}{value}" for part in (config.build_partition(), config.data) for name, value in changed(part).items())
    stem = f"{dataset.name}-{config.partition['name']}{special}-{config.num_clients}-s{config.seed}"
    picture = plot_label_distribution(counts, dataset.class_names, folder / f"{stem}.png")
    table = folder / f"{stem}.md"
    write_text(table, label_table(counts, dataset.class_names))
    print(f"label distribution of {config.num_clients} clients: {picture} {table}")
    return picture, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0

    def action() -> None:
        prepare(arguments)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
