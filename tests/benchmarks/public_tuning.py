"""What ``public_round.py`` launches for tuning: see there. ``public_tuning.py JOB OUT``, under accelerate launch."""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import load_dataset
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from round_job import quiet, read
from torch.nn import functional
from torchvision import transforms
from transformers import CLIPTextModel, CLIPTokenizer

WORKERS = 5


def main() -> None:
    job, out = read(Path(sys.argv[1])), Path(sys.argv[2])
    quiet()
    accelerator = Accelerator(gradient_accumulation_steps=1)
    set_seed(1234)
    schedule = DDPMScheduler.from_pretrained(job.model, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(job.model, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(job.model, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(job.model, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(job.model, subfolder="unet")
    for module in (text_encoder, vae, unet):
        module.requires_grad_(False).to(accelerator.device, dtype=torch.float32)
    unet.add_adapter(LoraConfig(r=job.rank, lora_alpha=job.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [it for it in unet.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=1e-2)

    files = {"train": str(out / "imagefolder" / "**")}
    pictures = load_dataset("imagefolder", data_files=files, cache_dir=str(out / "cache"))["train"]
    prepare = transforms.Compose(
        [
            transforms.Resize(job.side, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.RandomCrop(job.side),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )

    def prepared(rows: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(
            rows["text"],
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return {"pixels": [prepare(picture.convert("RGB")) for picture in rows["image"]], "ids": ids}

    def stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in ("pixels", "ids")}

    loader = torch.utils.data.DataLoader(
        pictures.with_transform(prepared), shuffle=False, collate_fn=stacked, batch_size=job.batch, num_workers=WORKERS
    )
    rates = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    unet.train()
    done = 0
    for _ in itertools.count():  # passes over the pictures
        for batch in loader:
            with accelerator.accumulate(unet):
                latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                at = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),), device=latents.device)
                noisy = schedule.add_noise(latents, noise, at)
                words = text_encoder(batch["ids"])[0]
                velocity = schedule.config.prediction_type == "v_prediction"
                target = schedule.get_velocity(latents, noise, at) if velocity else noise
                loss = functional.mse_loss(unet(noisy, at, words).sample.float(), target.float())
                accelerator.gather(loss.repeat(job.batch)).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            loss.detach().item()
            done += 1
            if done == job.tuning_steps:
                accelerator.save_state(str(out / "CustomModel" / f"checkpoint-{done}"))
                own = convert_state_dict_to_diffusers(get_peft_model_state_dict(accelerator.unwrap_model(unet)))
                StableDiffusionPipeline.save_lora_weights(out / "CustomModel", unet_lora_layers=own)
                return


if __name__ == "__main__":
    main()
