"""The parsers of ``raftdiff llm``; as in ``main``, no command is imported before it is called."""

from collections.abc import Sequence
from pathlib import Path

from raftdiff.cli.parsers.options import (
    RECIPE_HELP,
    Commands,
    add_command,
    add_place,
    add_recipe,
    from_one,
    from_one_or_all,
    from_zero,
)
from raftdiff.errors import command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def elsewhere(words: Sequence[str]) -> str | None:
    """What to say where ``raftdiff llm NAME`` names a recipe that another command runs; None where it does not."""
    if words[:1] != ["llm"] or len(words) < 2 or (CONFIGS / "llm" / f"{words[1]}.yaml").is_file():
        return None
    for folder, kind, way in (("pipelines", "a pipeline", ("pipeline",)), ("rm", "a reward model", ("rm", "train"))):
        if (CONFIGS / folder / f"{Path(words[1]).name}.yaml").is_file():
            return f"'{words[1]}' is the recipe of {kind}; run: {command('llm', *way, *words[1:])}"
    return None


def add_language(commands: Commands) -> None:
    """Language models on the same loop."""
    llm = commands.add_parser(
        "llm",
        help="language models: RAFT, RRHF, DPO, GRPO and others on the same loop",
        description="Language models on the same loop. A run is continued, evaluated and exported as one on pictures.",
    )
    words = llm.add_subparsers(title="commands and recipes", metavar="WHAT", required=True)

    demo = add_command(words, "demo", "train:demo", "RAFT on the small language model that ships, in a minute")
    add_recipe(demo, default="llm_demo")
    demo.set_defaults(then="set the methods side by side: raftdiff llm compare --methods raft,rrhf,dpo,grpo")
    add_place(demo)

    compared = add_command(
        words, "compare", "llm.tools:compare", "several methods at the same generation budget, in one table"
    )
    compared.add_argument("--methods", metavar="A,B,...", help="recipes' names; a dozen by default")
    compared.add_argument(
        "--reward", metavar="NAME", help="compare by this reward; by default the first of the first recipe"
    )
    for name, count, text in (
        ("rounds", 8, "rounds"),
        ("prompts", 64, "prompts a round"),
        ("candidates", 8, "answers a prompt"),
        ("seeds", 1, "training seeds"),
    ):
        compared.add_argument(
            f"--{name}", type=from_one, default=count, metavar="N", help=f"{text} (default: %(default)s)"
        )
    compared.add_argument(
        "--answers", type=from_one, metavar="N", help="so many for each, in rounds of its own recipe's size instead"
    )
    compared.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every recipe, by dotted path")
    add_place(compared)

    replied = add_command(
        words, "reply", "llm.tools:reply", "answers of a tuned model to your own prompts; best of n by choice"
    )
    replied.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    replied.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to ask, in quotes")
    replied.add_argument("--best-of", type=from_one, default=1, metavar="N", help="the best of N, by the rewards")
    replied.add_argument("--before", action="store_true", help="the base model's answer too")
    replied.add_argument("--round", type=from_zero, metavar="N", help="the model after this round; the last by default")
    replied.add_argument("--seed", type=from_zero, default=0, metavar="N", help="default: %(default)s")

    shown = add_command(
        words, "show-row", "llm.rows:show_row", "a row of data as the model sees it, token by token: what is learnt"
    )
    add_recipe(shown, metavar="RECIPE|RUN")
    shown.add_argument("--row", type=from_one, default=1, metavar="N", help="which, from 1 (default: %(default)s)")

    judged = add_command(words, "judge", "llm.tools:judge", "win, lose, tie against the base, asked in both orders")
    judged.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    judged.add_argument("overrides", nargs="*", metavar="key=value", help="options of the judge")
    judged.add_argument("--name", metavar="NAME", help="judge eval/NAME/ instead of eval/")
    judged.add_argument("--server", metavar="URL", help="an OpenAI-compatible server that judges")
    judged.add_argument("--model", metavar="NAME", help="the judge's name on the server")
    judged.add_argument("--api-key-env", metavar="VARIABLE", help="the environment variable that holds the key")
    judged.add_argument("--reward", metavar="NAME", help="a reward that judges instead: sentiment, classifier, ...")

    _reward_models(words)

    piped = add_command(
        words, "pipeline", "llm.pipeline:pipeline", "recipes one after the other: reward model, policy, again"
    )
    add_recipe(piped)
    add_place(piped)

    for path in sorted((CONFIGS / "llm").glob("*.yaml")):
        if path.stem != "llm_demo":
            text = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("#").strip()
            recipe = add_command(words, path.stem, "train:train", text.replace("%", "%%"))
            add_recipe(recipe, default=path.stem)
            add_place(recipe)


def _reward_models(words: Commands) -> None:
    """Reward models, trained on what was preferred to what."""
    rm = words.add_parser(
        "rm",
        help="reward models: train, eval, strength, pairs",
        description="Reward models, trained on what was preferred to what.",
    )
    verbs = rm.add_subparsers(title="commands", metavar="COMMAND", required=True)

    trained = add_command(verbs, "train", "llm.reward_models:train_model", "train a reward model, or continue its run")
    add_recipe(trained, metavar="RECIPE|RUN")
    add_place(trained)

    strong = add_command(
        verbs, "strength", "llm.reward_models:strength", "how strong each preference is, by several models"
    )
    add_recipe(strong)
    strong.add_argument("--models", type=from_one, default=10, metavar="N", help="default: %(default)s")
    strong.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pairs with mu and sigma, .jsonl")

    evaluated = add_command(
        verbs, "eval", "llm.reward_models:evaluate", "what a reward model learnt: accuracy, calibration, a page"
    )
    evaluated.add_argument("recipe", type=Path, metavar="RUN|FOLDER", help="a run, or the folder of a reward model")
    evaluated.add_argument("--pairs", metavar="FILE", help="pairs to ask; the run's held-out ones by default")
    evaluated.add_argument("--before", type=Path, metavar="RUN|FOLDER", help="another reward model, shown beside it")
    evaluated.add_argument("--out", type=Path, metavar="FOLDER", help="default: eval/ beside the model")
    evaluated.add_argument("--json", action="store_true", help="print eval.json instead of the figures")

    paired = add_command(verbs, "pairs", "llm.reward_models:pairs", "preference pairs of a run on texts, as JSON lines")
    paired.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    paired.add_argument("--labels", action="store_true", help="what people chose, instead of best against worst")
    paired.add_argument("--rounds", type=from_zero, nargs="+", metavar="N", help="of these rounds; of all by default")
    paired.add_argument(
        "--per-prompt",
        type=from_one_or_all,
        metavar="N|all",
        help="best with worst, second best with second worst, ... (default: 1); all: every two answers",
    )
    paired.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write them, .jsonl")
