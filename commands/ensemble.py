"""`ser ensemble`: one run out of the predictions of several."""

from pathlib import Path

import click

from .options import FILE, json_option
from .output import answer, next_step, table

WAYS = ("mean", "median", "majority", "stack")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=FILE)
@click.option(
    "--by",
    type=click.Choice(WAYS),
    default="mean",
    show_default=True,
    help="How the members' probabilities become one; stack: by logistic regression on the dev "
    "part.",
)
@click.option(
    "--weights",
    type=click.Choice(["dev"]),
    help="Of --by mean: the weights that predict the dev part best.",
)
@click.option(
    "--out",
    type=FILE,
    default=Path("ensembles"),
    show_default=True,
    metavar="DIR",
    help="Where the run folder is written, by its name.",
)
@json_option
def ensemble(
    runs: tuple[Path, ...], by: str, weights: str | None, out: Path, as_json: bool
) -> None:
    """Make one run of the predictions of RUNS (run folders, or folders of them).

    It is a run folder of its own, which `ser report` and `ser predict` take like any other; the
    members stay where they are. Of cells that were trained on several folds there is an ensemble
    for each. Valence, arousal and dominance are averaged. Runs that were tested on different
    utterances are refused: what one is tested on, another may have learnt.

    \b
    Examples:
      ser ensemble runs --by mean --out ensembles
      ser ensemble runs/3f2a91c07b5d4e68 runs/9bc1d2e0f4a67788 --by stack
    """
    from ser.train.ensemble.make import make_ensemble
    from ser.train.runs import run_facts

    made = make_ensemble(runs, by, out, weights)
    facts = []
    for run in made:
        record = run.result.ensemble
        members = [] if record is None else record.members
        facts.append(
            {
                **run_facts(run),
                "members": {member.run: member.weight for member in members},
            }
        )
    if as_json:
        answer(facts)
        return

    # Classes have no CCC, and ratings nothing else.
    measures = {"wa": "WA %", "ua": "UA %", "macro_f1": "macro-F1 %", "ccc": "CCC"}
    shown = [key for key in measures if any(fact[key] is not None for fact in facts)]

    rows = []
    for fact in facts:
        scores = [fact[key] for key in shown]
        rows.append([fact["run"], fact["fold"], len(fact["members"]), *scores])
    headings = ["run", "fold", "members", *(measures[key] for key in shown)]
    answer(table(rows, headings, floatfmt=".2f"))
    for run in made:
        if run.result.ensemble is not None and run.result.ensemble.members[0].weight is not None:
            for member in run.result.ensemble.members:
                answer(f"{member.weight:.3f}  {member.run}")
    next_step("report", *runs, out)
