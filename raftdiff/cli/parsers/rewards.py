"""The parsers of ``raftdiff rewards``; as in ``main``, no command is imported before it is called."""

import argparse
from pathlib import Path

from raftdiff.cli.parsers.options import Commands, add_command, from_one, from_zero, part


def add_rewards(commands: Commands) -> list[argparse.ArgumentParser]:
    """Rewards apart from a run; returns the parsers of the commands."""
    rewards = commands.add_parser(
        "rewards",
        help="serve a reward to other processes; train one on your ratings",
        description="Rewards apart from a run.",
    )
    words = rewards.add_subparsers(title="commands", metavar="WHAT", required=True)

    served = add_command(
        words, "serve", "pages:serve_reward", "serve a reward over HTTP, for 'type: remote' in recipes elsewhere"
    )
    served.add_argument("reward", metavar="NAME|RECIPE", help="a reward, your module:function, or a recipe that has it")
    served.add_argument("overrides", nargs="*", metavar="key=value", help="options of the reward, or of the recipe")
    served.add_argument("--only", metavar="NAME", help="which reward of a recipe that has several")
    served.add_argument("--text", action="store_true", help="a module:function on answers")
    served.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    served.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    served.add_argument("--port", type=from_one, help="default: the first free one from 7860")

    trained = add_command(
        words,
        "train-aesthetic",
        "pictures.aesthetic:train_aesthetic",
        "learn an aesthetic head from pictures that you rated, and see how it does on some held out",
    )
    trained.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="pictures with ratings: an ImageFolder (metadata.jsonl or .csv) or any table with file_name and a rating; "
        "or folders called by the rating (1/, 2/, ...)",
    )
    trained.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the reward, e.g. pretrained=openai, batch_size=64"
    )
    trained.add_argument("--column", metavar="NAME", help="the table's column with the ratings (default: rating)")
    trained.add_argument(
        "--tower",
        metavar="MODEL",
        help="the CLIP model whose embeddings are read, as the reward's 'model' (default: ViT-L-14, OpenAI's); "
        "scene-clip ships",
    )
    trained.add_argument(
        "--held-out", type=part, default=0.2, metavar="SHARE", help="of the pictures, to look at (default: %(default)s)"
    )
    trained.add_argument("--seed", type=from_zero, default=0, metavar="N", help="of the split (default: %(default)s)")
    trained.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    trained.add_argument(
        "--out", type=Path, metavar="FILE", help="a new .safetensors file, FOLDER-aesthetic.safetensors by default"
    )
    return [served, trained]
