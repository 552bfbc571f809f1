"""The pages: compare, watch, label; and rewards that are served to other processes."""

import argparse
import socket
import sys
from pathlib import Path
from typing import Any

from raftdiff.apps import page
from raftdiff.apps.door import Door, addresses, serve
from raftdiff.cli.opening import to_read
from raftdiff.diffusion.recipe_files import refuse_other
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, command, counted, nearest
from raftdiff.recipes.files import refuse_preferences
from raftdiff.records.labels import RATER, candidate_pairs, evaluation_pairs
from raftdiff.records.run import Run


def compare(args: argparse.Namespace) -> None:
    from raftdiff.apps import compare as app

    door = _door(args)
    with door.listen() as listening:  # mistakes in flags are told before anything loads
        page.gradio()
        runs = [to_read(path) for path in (Path(args.recipe), args.other) if path]
        for run in runs:
            refuse_other(run)
        from raftdiff.diffusion.before_after.sidebyside import SideBySide

        beside = SideBySide(runs, file=args.prompts)
        beside.warm()
        _serve(app.build(beside), door, listening, "runs this machine's GPU, and shows what the run made")


def watch(args: argparse.Namespace) -> None:
    from raftdiff.apps import watch as app

    door = _door(args)
    with door.listen() as listening:
        page.gradio()
        _serve(app.build(_samples(args)), door, listening, "shows what the run made")


def label(args: argparse.Namespace) -> None:
    from raftdiff.apps import label as app

    door = _door(args)
    if not RATER.fullmatch(args.rater):
        raise UserError(f"--rater '{args.rater}': use letters, digits, '_' and '-', at most 64; it names a file.")
    with door.listen() as listening:
        page.gradio()
        run = _samples(args)
        if args.eval is not None:
            pairs = evaluation_pairs(run, args.eval or None, seed=0)
        elif not (done := run.rounds_done()):
            alone = ["loop.rounds=1"] if run.info().get("until") else []  # it was to draw, no more
            raise UserError(
                f"{run.path}: people compare the candidates of a finished round, and this run has none yet; finish the "
                f"first with: {command('train', run.path, *alone)}"
            )
        else:
            chosen = done - 1 if args.round is None else args.round
            pairs = candidate_pairs(run, chosen, per_prompt=args.per_prompt, seed=0)
            print(f"{counted(len(pairs), 'pair')} of round {chosen}'s candidates", flush=True)
        shows = "shows what the run made, and takes anybody's choices"
        _serve(app.build(run, pairs, rater=args.rater), door, listening, shows)


def serve_reward(args: argparse.Namespace) -> None:
    """Until Ctrl-C; the token is the environment's, or one that is made up and printed."""
    from raftdiff.apps.reward_server import Served, token
    from raftdiff.recipes.config import digest, plain
    from raftdiff.rewards.remote import TOKEN, Media
    from raftdiff.training.devices import find_device

    door, (secret, fresh) = Door(args.host, args.port, browser=False), token()
    config, texts = reward_of(args)
    device = str(find_device(args.device))
    with door.listen() as listening:
        if not door.alone:
            told = "anybody on your network who has the token, which plain http shows on its way"
            print(f"warning: this reward is open to {told}. It runs this machine's GPU.", file=sys.stderr)
        reward = config.build(device=device, resolve=resolve)
        media: Media = "text" if texts else "picture"
        if callable(demand := getattr(reward, "demand_sent", None)):
            demand(media)
        served = Served(reward, media, listening, token=secret, digest=digest(plain(config)))
        here, elsewhere = addresses(door, listening.getsockname()[1])
        for address in filter(None, (here, elsewhere)):
            print(f"{config.name}, for {media}s: {{type: remote, name: {config.name}, base_url: '{address}v1'}}")
        print(f"where it is asked from: export {TOKEN}={secret if fresh else '...'}\nCtrl-C ends it.", flush=True)
        served.wait()


def reward_of(args: argparse.Namespace) -> tuple[Any, bool]:
    """The config of the reward that is named, alone or in a recipe, and whether it is one on texts.

    Raises:
        UserError: there is no such reward or recipe, a recipe has several, or it cannot be had without the model.
    """
    from raftdiff.cli.either import read
    from raftdiff.llm.recipe import TextRecipe
    from raftdiff.recipes import registry
    from raftdiff.recipes.config import options
    from raftdiff.recipes.files import recipes
    from raftdiff.recipes.needs import needs, refuse

    name, on_pictures, on_texts = args.reward, registry.sources("rewards"), registry.sources("text_rewards")
    if ":" in name or name in {*on_pictures, *on_texts}:
        own = {"type": "callable", "function": name, "name": name.split(":")[-1]} if ":" in name else {"type": name}
        texts = args.text or own["type"] not in on_pictures
        group: registry.Group = "text_rewards" if texts else "rewards"
        config: Any = options(registry.load(group, own["type"]), own, args.overrides, f"the reward '{name}'")
    elif Path(name).is_file() or name in recipes():
        recipe = read(name, args.overrides)
        texts, held = isinstance(recipe, TextRecipe), {one.name: one for one in recipe.ranker.rewards}
        wanted = args.only or (next(iter(held)) if len(held) == 1 else None)
        if wanted not in held:
            asked = f"has no reward '{wanted}'" if wanted else "has several rewards"
            raise UserError(f"{name} {asked}; name one with --only: {', '.join(held)}.")
        config = held[wanted]
    else:
        raise UserError(f"'{name}' is neither a reward nor a recipe. {nearest(name, [*on_pictures, *on_texts])}")
    if not hasattr(config, "build"):
        raise UserError(f"The reward '{config.type}' is made of the model that is tuned, and cannot stand alone.")
    refuse("the reward", needs(config, resolve))
    return config, texts


def _samples(args: argparse.Namespace) -> Run:
    """
    Raises:
        UserError: there is no such run, or it is one of a reward model, which draws nothing.
    """
    run = to_read(Path(args.recipe))
    refuse_preferences(run.path / "recipe.yaml", run.path)
    return run


def _door(args: argparse.Namespace) -> Door:
    """
    Raises:
        UserError: half a login.
    """
    door = Door(args.host, args.port, args.share, args.auth, browser=not args.no_browser)
    door.login()
    return door


def _serve(blocks: Any, door: Door, listening: socket.socket, shows: str) -> None:
    """Until Ctrl-C; ``shows`` says what whoever comes in gets."""
    if warning := door.warning(shows):
        print(warning, file=sys.stderr)
    served = serve(blocks, door, listening)
    elsewhere = f"\n{served.elsewhere} from other machines" if served.elsewhere else ""
    print(f"{served.address}{elsewhere}\nCtrl-C ends it.", flush=True)
    served.wait()
