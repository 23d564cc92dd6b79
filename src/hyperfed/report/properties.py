"""What kind of method each one is, found out by running its functions, not typed: the table of all methods x properties."""

from typing import NamedTuple

from hyperfed.core import Bank, Role, UserError, count, flatten
from hyperfed.core.codec import fields
from hyperfed.engine.probe import pretend, summable
from hyperfed.methods import METHODS
from hyperfed.models import HyperModel, Hypernet, Network, Shape, build_model
from hyperfed.report.runs import NAMES

PAST_WARM_UP = {"pfedsim": {"warmup_rounds": 0}}  # what a method is after its first phase


class Properties(NamedTuple):
    """One row; elements are trained elements up + down in one round for the CIFAR-10 ResNet (before any later-round extras)."""

    method: str
    personal_head: bool
    personal_norm: bool
    client_state: bool
    server_state_per_client: bool
    extra_traffic: bool
    elements: int
    over_hfn: str
    sum_is_enough: bool


def needs_only_a_sum(name: str, network: Network) -> bool:
    """Whether the server's step stays the same when every upload is replaced by their mean: then secure aggregation suffices."""
    return summable(METHODS[name](network, 3, **PAST_WARM_UP.get(name, {}))) is not None


def properties(name: str) -> Properties:
    """Find out one method's properties on small networks, and its cost on the ResNet of Table 1."""
    small, paper = build_model("resnet", Shape(1, 8, 4)), build_model("resnet", Shape(3, 32, 10), blocks=6)
    method = METHODS[name](small, 3)
    server, _, _, downs, ups = pretend(method, 2, (8, 8, 8))
    sent = {full.partition("/")[2] for message in (*downs, *ups) for full in flatten(message)}
    of = {role: {n for n, r in small.roles.items() if r is role} for role in (Role.HEAD, Role.NORM)}
    own = {full for message in (*downs, *ups) for full in flatten(message) if full.rpartition("/")[2] not in small.roles}
    big = METHODS[name](paper, 3)
    big_played = pretend(big, 1, (8,))
    cost = count(big_played.downs[0], paper.roles) + count(big_played.ups[0], paper.roles)
    return Properties(
        NAMES[name],
        not sent & of[Role.HEAD],
        not sent & of[Role.NORM],
        bool(flatten(method.init_client(small.init(0)))),
        any(kind is Bank for kind in fields(type(server)).values()),
        bool({o for o in own if not o.rpartition("/")[2].startswith(tuple(small.roles))}),
        cost.trainable,
        over_hfn(name, small),
        needs_only_a_sum(name, small),
    )


def over_hfn(name: str, network: Network) -> str:
    """yes, with hypernet.share=[head], or no."""
    for share, text in (((), "yes"), (("head",), "with share=[head]")):
        try:
            METHODS[name](HyperModel(network, Hypernet(embedding=4, share=share)), 3)
            return text
        except UserError:
            continue
    return "no"


COLUMNS = (
    "method",
    "personal head",
    "personal batch norm",
    "client state",
    "server keeps rows per client",
    "sends more than the model",
    "elements, first round",
    "over HFN",
    "a sum is enough for the server",
)


def properties_table() -> str:
    """Markdown: all methods x properties."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name in METHODS:
        cells = [("yes" if v else "") if isinstance(v, bool) else f"{v:,}" if isinstance(v, int) else v for v in properties(name)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
