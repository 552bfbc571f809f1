"""The parsers of what runs a recipe: as a whole, or one verb of the loop at a time."""

from pathlib import Path

from raftdiff.cli.parsers.options import Commands, add_command, add_place, add_recipe, from_zero, one_of


def add_running(commands: Commands) -> None:
    """Run a recipe."""
    demo = add_command(commands, "demo", "train:demo", "RAFT on the model that ships, then a before/after report")
    add_recipe(demo, default="demo")
    demo.set_defaults(
        then="look at the report, then try a job with scenes of kinds the model never saw: raftdiff train scene_align"
    )
    add_place(demo)

    train = add_command(commands, "train", "train:train", "run a recipe, or continue a run")
    add_recipe(train, metavar="RECIPE|RUN")
    add_place(train)


def add_stages(commands: Commands) -> None:
    """The verbs of the loop, one at a time."""
    for stage, text in (
        ("sample", "draw the candidates of the next round"),
        ("merge", "join the shards of a round that several machines sampled"),
        ("score", "score the candidates of the round that was sampled"),
        ("select", "select what to learn from"),
        ("tune", "fine-tune on the selection, and complete the round"),
    ):
        command = add_command(commands, stage, f"stages:{stage}", text)
        add_recipe(command, metavar="RECIPE|RUN" if stage == "sample" else "RUN")
        if stage == "sample":
            add_place(command)
            command.add_argument(
                "--shard", type=one_of, metavar="I/N", help="draw the I-th of N parts alone, to be joined by merge"
            )
        if stage == "score":
            command.add_argument(
                "--round", type=from_zero, metavar="N", help="score this finished round again, into a new run"
            )
            command.add_argument("--out", type=Path, metavar="FOLDER", help="the new run (with --round)")
