"""``raftdiff export``: the tuned weights in the formats that people already use."""

import argparse

from raftdiff.cli.train import existing_run
from raftdiff.comparison import load_round
from raftdiff.diffusion import export as formats
from raftdiff.recipe import assemble

HOW = {
    "diffusers": "load it with: pipeline.load_lora_weights('{out}')",
    "kohya": "put it into the Lora folder of A1111 or ComfyUI",
    "merged": "load it with: StableDiffusionPipeline.from_pretrained('{out}')",
}


def export(args: argparse.Namespace) -> None:
    run, recipe = existing_run(args, free=("model.dtype", "model.attention", "finetuner.precision"))
    assembly = assemble(recipe)
    load_round(run, assembly, args.round)
    out = args.out or run.path / "export" / (args.format + (".safetensors" if args.format == "kohya" else ""))
    written = formats.export(assembly.finetuner, args.format, out)
    print(f"{written}\n{HOW[args.format].format(out=written)}")
