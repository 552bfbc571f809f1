"""A round as the RAFT authors' public diffusion scripts do it, rebuilt for current libraries; no code is theirs.

Read: OptimalScale/LMFlow, experimental/RAFT-diffusion: SD256-RAFT.ipynb (as of commit 474e162) and
train_text_to_image_lora.py (4b343e8), which the notebook starts each round; and, for what both have in common, a
co-author's deepgoyal19/RAFT-Diffusion (src/lmflow_aigen/pipeline/raft_finetuner.py, 23690cb; scripts/run_raft.sh,
1f41ab7).

What it does, and where that stands:

- The notebook loads StableDiffusionPipeline once, with DPM-Solver++, and keeps it. A loader hands it 5 prompts at a
  time, of which one call draws all candidates, 50 pictures in one batch (cells "Creating Dataloader", "Run training").
  So prompts are batched there; RAFT-Diffusion draws 20 prompts together. Guidance is the pipeline's own, in one pass.
  The pipeline reads the prompts at each call and decodes all its pictures at once.
- Each picture goes through the reward's image tower alone, prompts side by side in as many threads as there are
  processors (get_image_score, get_max_score).
- The best of each prompt is kept, and of these the 8 best; they alone are written, as PNG with a metadata.csv.
- Tuning is another process, by `accelerate launch`, which loads all components again. It reads the pictures back by
  `datasets`, resizes and encodes them by the VAE anew at every step, reads the captions by the text encoder at every
  step, and starts 5 loader processes for every pass over the pictures; 8 pictures in batches of 8 are one step a pass.
  The loss is the plain one at uniform timesteps, LoRA of rank 4 on the attention, AdamW in its default form, two
  synchronisations a step for the log, a checkpoint at the end, and the LoRA written (train_text_to_image_lora.py).
- The notebook then loads the LoRA from disk into the pipeline.

Departures, all of them in its favour but the first two, which are neutral: candidates have seeds, and the notebook's
have none, so that the same pictures are drawn; LoRA through PEFT, since LoRAAttnProcessor is gone from diffusers.
Float32 and no xformers, as on a CPU; no safety checker (SD 1.5's is a CLIP pass a picture); captions are
read once for the reward, which the notebook's aesthetic reward does not need; no tracker; no learning from earlier
rounds' checkpoints. Steps, guidance and learning rate are the job's, not 50, 7.5 and 9e-6. Its option
gradient_checkpointing is read and not used, here as there.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from round_job import Job, Scorer, best, generators

PROMPTS_AT_ONCE, TOP = 5, 8
TUNING = Path(__file__).with_name("public_tuning.py")


class Public:
    """What the notebook holds over its rounds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pipe = StableDiffusionPipeline.from_pretrained(job.model, dtype=torch.float32)
        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.score = Scorer(job)

    def draw(self, out: Path) -> list[int]:
        """Draw, score, choose and write; which of each prompt's candidates is the best."""
        job, chosen = self.job, list[tuple[float, Image.Image, str, int]]()
        count = len(job.seeds[0])
        for start in range(0, len(job.captions), PROMPTS_AT_ONCE):
            captions = list(job.captions[start : start + PROMPTS_AT_ONCE])
            seeds = [seed for row in job.seeds[start : start + PROMPTS_AT_ONCE] for seed in row]
            pictures = self.pipe(
                captions,
                num_images_per_prompt=count,
                width=job.side,
                height=job.side,
                num_inference_steps=job.steps,
                guidance_scale=job.guidance,
                generator=generators(seeds),
            ).images
            rows = [pictures[place * count : (place + 1) * count] for place in range(len(captions))]
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
                found = list(threads.map(self._best, rows, range(start, start + len(captions))))
            chosen += [(score, row[at], text, at) for (score, at), row, text in zip(found, rows, captions, strict=True)]
        folder = out / "imagefolder" / "train"
        folder.mkdir(parents=True)
        kept = sorted(chosen, key=lambda it: it[0], reverse=True)[:TOP]
        for place, (_, picture, _, _) in enumerate(kept):
            picture.save(folder / f"{place}.png")
        table = {"file_name": [f"{place}.png" for place in range(len(kept))], "text": [text for _, _, text, _ in kept]}
        pandas.DataFrame(table).to_csv(folder / "metadata.csv", index=False)
        return [at for *_, at in chosen]

    def tune(self, out: Path) -> None:
        """Another process tunes and writes a LoRA, which is loaded here."""
        words = ["--num_processes=1", "--mixed_precision=no", "--dynamo_backend=no", "--num_machines=1"]
        words += [] if torch.cuda.is_available() else ["--cpu"]
        own = [str(TUNING), str(self.job.write(out / "job.json")), str(out)]
        done = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *words, *own],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        self.pipe.load_lora_weights(out / "CustomModel")

    def _best(self, pictures: list[Image.Image], prompt: int) -> tuple[float, int]:
        scores = [self.score([picture], [prompt])[0] for picture in pictures]
        (at,) = best(scores, len(scores))
        return scores[at], at
