"""``raftdiff export``: the tuned weights in the formats that people already use."""

import argparse
from pathlib import Path

from raftdiff.cli.either import prepared, run_to_read
from raftdiff.cli.opening import chosen_round
from raftdiff.errors import UserError
from raftdiff.llm.assembly import TextAssembly
from raftdiff.llm.recipe import TextRecipe
from raftdiff.records.disk import demand_place
from raftdiff.records.run import load_round

HOW = {
    "diffusers": "load it with: pipeline.load_lora_weights('{out}')",
    "kohya": "put it into the Lora folder of A1111 or ComfyUI",
    "merged": "load it with: DiffusionPipeline.from_pretrained('{out}')",
    "checkpoint": "put it into the folder of checkpoints of A1111 (Stable-diffusion) or ComfyUI (checkpoints)",
    "peft": "load it with: AutoModelForCausalLM.from_pretrained('{out}')",
    "peft gguf": "load it with: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}', "
    "gguf_file='{file}'), '{out}')",
    "merged text": "load it with: AutoModelForCausalLM.from_pretrained('{out}')",
}
FLOWS = {
    "kohya": "put it into models/loras of ComfyUI, where that knows {told}, or give it to another program that does",
    "checkpoint": "put it into models/checkpoints of ComfyUI, where that knows {told}",
}
FREE = ("model.dtype", "model.attention", "finetuner.precision")


def export(args: argparse.Namespace) -> None:
    run, recipe = run_to_read(args, free=FREE)
    text = isinstance(recipe, TextRecipe)
    if text and args.format not in (None, "peft", "merged"):
        raise UserError(f"--format {args.format}: a language model is exported as peft or merged.")
    if not text and args.format == "peft":
        raise UserError("--format peft: a diffusion model is exported as diffusers, kohya, merged or checkpoint.")
    chosen_round(run, args.round)
    if args.out is not None:
        demand_place(args.out.parent if args.out.suffix == ".safetensors" else args.out)
    base, file, beside = None, None, ""
    if not isinstance(recipe, TextRecipe):  # what was learnt above rounded weights leaves with the whole ones
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"quantise": None, "offload": False})}
        )
    assembly = prepared(run, recipe)
    load_round(run, assembly.finetuner, args.round)
    if isinstance(assembly, TextAssembly):
        from raftdiff.llm import export as texts

        form = args.format or ("peft" if assembly.recipe.finetuner.adapter == "lora" else "merged")
        written = texts.export(
            assembly.finetuner, "peft" if form == "peft" else "merged", args.out or run.path / "export" / form
        )
        base, file = assembly.recipe.model.base, assembly.recipe.model.gguf_file
        how = HOW["merged text" if form != "peft" else "peft gguf" if file else "peft"]
    else:
        from raftdiff.diffusion import export as pictures

        form = args.format or ("kohya" if args.out is not None and args.out.suffix == ".safetensors" else "diffusers")
        out = args.out or run.path / "export" / (form + (".safetensors" if form in pictures.FILES else ""))
        told = {
            "raftdiff.recipe": recipe.name,
            "raftdiff.digest": str(run.info().get("digest", "")),
            "raftdiff.rewards": ", ".join(one.name for one in recipe.ranker.rewards),
        }
        loras = assembly.recipe.model.loras
        started = ", ".join(f"{one.path} at {one.weight:g}" for one in loras)
        if loras:
            told["raftdiff.loras"] = ", ".join(f"{_called(one.path)} at {one.weight:g}" for one in loras)
        written = pictures.export(assembly.finetuner, form, out, told)
        family = assembly.finetuner.parts.family
        how = HOW[form] if form not in FLOWS or family.denoiser == "unet" else FLOWS[form].format(told=family.told)
        if started and form in ("diffusers", "kohya"):
            beside = f"\nit is the new training alone: use it beside {started}"
    print(f"{written}\n{how.format(out=written, base=base, file=file)}{beside}")


def _called(path: str) -> str:
    """What others are told of a LoRA's place: its name without this machine's folders; a hub id is whole."""
    local = Path(path).expanduser()
    return local.resolve().name if local.exists() else path
