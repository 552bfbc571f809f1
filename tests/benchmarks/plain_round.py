"""A round by diffusers, PEFT and open_clip alone, in the fastest way that their documentation leads to.

The pipeline is loaded once and its convolutions lie channels-last. Captions are read once each. Batches go across
prompts, guidance in one pass, and latents are kept: they are decoded in batches, and learnt from as they are, so that
nothing is encoded. The reward sees all pictures of a batch at once, in inference mode. LoRA through PEFT, AdamW in its
foreach form, and nothing is read from the device within the steps. The chosen pictures alone are written, and the LoRA.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from round_job import Job, Scorer, best, generators
from torch import Tensor
from torch.nn import functional

AT_ONCE = 32


class Plain:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.pipe = StableDiffusionPipeline.from_pretrained(job.model, dtype=torch.float32)
        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        for module in (self.pipe.unet, self.pipe.vae):
            module.requires_grad_(False).to(memory_format=torch.channels_last)
        self.score = Scorer(job)
        self.chosen: list[Tensor] = []
        self.captions = torch.empty(0)

    def draw(self, out: Path) -> list[int]:
        job, count = self.job, len(self.job.seeds[0])
        with torch.inference_mode():
            self.captions, empty = self.pipe.encode_prompt(list(job.captions), self.pipe.device, 1, True)
        order = [(prompt, seed) for prompt, row in enumerate(job.seeds) for seed in row]
        scores, pictures, kept = list[float](), list[Image.Image](), list[Tensor]()
        for start in range(0, len(order), AT_ONCE):
            prompts, seeds = zip(*order[start : start + AT_ONCE], strict=True)
            latents = self._latents(prompts, seeds, empty)
            drawn = self._decoded(latents)
            scores += self.score(drawn, prompts)
            pictures += drawn
            kept += list(latents)
        found = best(scores, count)
        places = [prompt * count + at for prompt, at in enumerate(found)]
        self.chosen = [kept[place].clone() for place in places]
        for place in places:
            pictures[place].save(out / f"{place}.png")
        return found

    def tune(self, out: Path) -> None:
        job, unet = self.job, self.pipe.unet
        schedule = DDPMScheduler.from_config(self.pipe.scheduler.config)
        latents, captions = torch.stack(self.chosen), self.captions.clone()
        unet.add_adapter(
            LoraConfig(r=job.rank, lora_alpha=job.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        )
        trained = [it for it in unet.parameters() if it.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, foreach=True)
        unet.train()
        torch.manual_seed(0)
        for step in range(job.tuning_steps):
            rows = torch.arange(step * job.batch, (step + 1) * job.batch) % len(latents)
            clean, words = latents[rows], captions[rows]
            noise = torch.randn_like(clean)
            at = torch.randint(0, schedule.config.num_train_timesteps, (len(rows),))
            velocity = schedule.config.prediction_type == "v_prediction"
            target = schedule.get_velocity(clean, noise, at) if velocity else noise
            predicted = unet(schedule.add_noise(clean, noise, at), at, words, return_dict=False)[0]
            functional.mse_loss(predicted, target).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        unet.eval()
        own = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=own)

    @torch.inference_mode()
    def _latents(self, prompts: Sequence[int], seeds: Sequence[int], empty: Tensor) -> Tensor:
        found: Tensor = self.pipe(
            prompt_embeds=self.captions[list(prompts)],
            negative_prompt_embeds=empty[:1].expand(len(prompts), -1, -1),
            width=self.job.side,
            height=self.job.side,
            num_inference_steps=self.job.steps,
            guidance_scale=self.job.guidance,
            generator=generators(seeds),
            output_type="latent",
        ).images
        return found

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> list[Image.Image]:
        """Kept latents are scaled, as the U-Net sees them."""
        pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor, return_dict=False)[0]
        pictures: list[Image.Image] = self.pipe.image_processor.postprocess(pixels, output_type="pil")
        return pictures
