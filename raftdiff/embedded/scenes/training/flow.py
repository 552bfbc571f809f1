"""Train the transformer and the text encoders of emoji-flow, jointly and from scratch, on the latents of scene-sd.

    python -m raftdiff.embedded.scenes.training.flow --minutes 600

A rectified flow as Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): levels of noise are logit-normal,
and shifted. The autoencoder is scene-sd's, trained by ``vae.py``; the first text encoder begins as scene-sd's;
``latents.py`` holds what is shared with the U-Net's program.
"""

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.flow import FILES, SHIFT, T5_TOKENS, build, say
from raftdiff.embedded.scenes.training.latents import Learner, options, spread, train
from raftdiff.embedded.scenes.training.muon import muon
from raftdiff.embedded.scenes.training.timing import Clock


@final
class CountedOnce:
    """Joint attention in which the last token of the text stands for the 256 zeros in T5's place.

    Those tokens have no places, so that they begin alike and stay alike through every block: one of them whose
    attention is raised by log 256 before the softmax does what all of them do, for a third of the work.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Of a picture's tokens (batch, patches, width) and the text's (batch, tokens, width): both, attended."""
        batch, patches, _width = hidden_states.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, -1, attn.heads, projected.shape[-1] // attn.heads).transpose(1, 2)

        picture = [heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)]
        projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text = [heads(project(encoder_hidden_states)) for project in projections]
        query = torch.cat([attn.norm_q(picture[0]), attn.norm_added_q(text[0])], dim=2)
        key = torch.cat([attn.norm_k(picture[1]), attn.norm_added_k(text[1])], dim=2)
        raised = query.new_zeros(key.shape[2])
        raised[-1] = math.log(T5_TOKENS)
        mask = raised.expand(batch, 1, query.shape[2], -1)
        attended = scaled_dot_product_attention(query, key, torch.cat([picture[2], text[2]], dim=2), attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)
        of_text = attended[:, patches:]
        return attn.to_out[0](attended[:, :patches]), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def begun(tokenizer: Any) -> dict[str, Any]:
    """The parts as they begin to learn: the first text encoder with the weights of scene-sd's where both have them."""
    modules = build(tokenizer)
    modules["transformer"].set_attn_processor(CountedOnce())
    kept = load_file(folder("scene-sd") / "text_encoder" / "model.safetensors")
    kept = {name.removeprefix("text_model."): tensor for name, tensor in kept.items()}
    encoder = modules["text_encoder"]
    first = {
        name: kept.get(name.removeprefix("text_model."), own).float() for name, own in encoder.state_dict().items()
    }
    encoder.load_state_dict(first)
    return modules


def loss(modules: Mapping[str, Any], tokens: Tensor, x0: Tensor) -> Tensor:
    """Mean squared error of the velocity from picture to noise, at levels s that are spread over their distribution."""
    even = torch.special.ndtri(spread(len(x0), x0.device).clamp(1e-6, 1 - 1e-6)).sigmoid()
    s = SHIFT * even / (1 + (SHIFT - 1) * even)
    noise, level = torch.randn_like(x0), s[:, None, None, None]
    told, pooled = say(modules, tokens, zeros=1)
    predicted = modules["transformer"](
        (1 - level) * x0 + level * noise,
        encoder_hidden_states=told,
        pooled_projections=pooled,
        timestep=1000 * s,
        return_dict=False,
    )[0]
    error: Tensor = predicted.float() - (noise - x0)
    return error.square().mean()


LEARNER = Learner("transformer", begun, FILES, loss, muon)


def main() -> None:
    given = options(__doc__).parse_args()
    train(given, Clock(given), LEARNER)


if __name__ == "__main__":
    main()
