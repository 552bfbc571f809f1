"""The parsers of what a run came to: its evaluation, learning rules side by side, its weights for others."""

from pathlib import Path

from raftdiff.cli.parsers.options import Commands, add_command, add_recipe, from_one, from_zero


def add_results(commands: Commands) -> None:
    """What a run came to."""
    evaluate = add_command(commands, "eval", "evaluate:evaluate", "before and after on prompts, same seeds")
    add_recipe(evaluate, metavar="RUN|MODEL|FOLDER")
    evaluate.add_argument(
        "--benchmark",
        metavar="NAME",
        help="geneval, geneval2, parti, compbench, dpg, hpsv2, imagereward or pick-a-pic: figures by category and a "
        "table for papers, of a run, and also of a model or of a folder of pictures in its place",
    )
    evaluate.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt file, the benchmark's for one, or 'training' for the run's own; held-out ones by default",
    )
    evaluate.add_argument(
        "--samples", type=from_one, metavar="N", help="pictures per prompt; the recipe's or benchmark's by default"
    )
    evaluate.add_argument(
        "--reward",
        action="append",
        metavar="NAME[:key=value,...]",
        help="with --benchmark: what scores it, as for rank, in place of the recipe's rewards",
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FOLDER", help="with --benchmark, of a model or a folder; default: NAME-BENCHMARK"
    )
    evaluate.add_argument("--steps", type=from_one, metavar="N", help="sampling steps; the recipe's by default")
    evaluate.add_argument("--guidance", metavar="W,W", help="draw with each, such as 1,2,3: each model at its best")
    evaluate.add_argument(
        "--round", type=from_zero, metavar="N", help="the model after this round; the last by default"
    )
    evaluate.add_argument("--name", metavar="NAME", help="write to eval/NAME/ instead of eval/")
    evaluate.add_argument("--json", action="store_true", help="print eval.json instead of the table")

    compared = add_command(
        commands, "methods", "pictures.methods:methods", "learning rules side by side on one recipe, at equal cost"
    )
    compared.add_argument("recipe", nargs="?", default="scene_align", metavar="RECIPE", help="default: %(default)s")
    compared.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, by dotted path")
    compared.add_argument(
        "--methods",
        metavar="A,B,...",
        help="raft, raft_random, rwr, awm, nft, dpo, ipo, kto, which are the default; ddpo, draft, refl; and recipes "
        "of your own",
    )
    compared.add_argument(
        "--seeds", type=from_one, default=3, metavar="N", help="training seeds (default: %(default)s)"
    )
    compared.add_argument(
        "--guidance",
        metavar="W,W",
        default="1",
        help="look with each of these too, each method at its best (default: 1)",
    )
    compared.add_argument(
        "--evaluations",
        type=from_one,
        metavar="N",
        help="network evaluations of a run, drawing and learning; by default what the recipe costs as it stands",
    )
    compared.add_argument("--training", action="store_true", help="look at the prompts of the training too")
    compared.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUNS/methods-RECIPE-DIGEST")
    compared.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")

    export = add_command(commands, "export", "export:export", "the tuned weights in a format that others read")
    add_recipe(export, metavar="RUN")
    export.add_argument(
        "--format",
        choices=("diffusers", "kohya", "merged", "checkpoint", "peft"),
        help="diffusers by default; of a text run, peft",
    )
    export.add_argument("--round", type=from_zero, metavar="N", help="the model after this round; the last by default")
    export.add_argument("--out", type=Path, metavar="PATH", help="default: RUN/export/FORMAT")
