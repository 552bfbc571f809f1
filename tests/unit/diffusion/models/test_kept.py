"""Embeddings kept on disk: the same pictures to the bit, no text encoder read for nothing, and never another's."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from raftdiff.cli.pictures.plan import _kept
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import kept
from raftdiff.diffusion.models.checkpoints import folder_layout
from raftdiff.diffusion.models.kept import Kept
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in ("a cat", "two dogs")]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where embeddings are kept, of small text encoders too."""
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setenv(kept.PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "texts"


def opened(path, **changes):
    return load(ModelConfig(base=str(path), **changes))


def drawn(parts):
    sampler = DiffusionSamplerConfig(steps=2, guidance=2.0, batch_size=2).build(parts)
    found = sampler.sample(PROMPTS, per_prompt=1, seed=0, round=0, done=set())
    return torch.stack([sample.aux["latent"] for sample in found])


def waits(parts):
    return [all(it.is_meta for it in module.parameters()) for module in parts.text_encoders.values()]


@pytest.mark.parametrize("kind", ["zimage", "sd3"])
def test_the_same_pictures_to_the_bit_and_nothing_is_read_that_is_known(models, folder, kind):
    plain = opened(models[kind], keep_texts=False)
    wanted = drawn(plain)
    assert not folder.exists()
    first = opened(models[kind])
    assert all(waits(first))
    assert torch.equal(drawn(first), wanted)
    assert not any(waits(first))
    assert len(list(folder.iterdir())) == 3  # two captions and the empty one
    again = opened(models[kind], offload=True)
    assert torch.equal(drawn(again), wanted)
    assert all(waits(again))
    asked = SimpleNamespace(model=again, parts=SimpleNamespace(prompts=PROMPTS[:1], held_out=PROMPTS))
    assert _kept(asked) == f"3 of 3: text encoders, 0.0 GB, are not loaded ({folder})"
    strange = "something else"
    told, known = again.prompts([strange]), plain.prompts([strange])  # read after all, in all its parts
    assert torch.equal(told.tokens, known.tokens)
    assert all(it.device == CPU and not it.requires_grad for it in again.modules["text_encoder"].parameters())
    assert not again.modules["text_encoder"].training
    assert again.prompts.kept.holds(["a cat", strange, "never asked"]) == 2


def test_text_encoders_that_are_trained_or_changed_keep_nothing(models, folder):
    parts = opened(models["sd15"])
    DiffusionFineTunerConfig(rank=2, train_text_encoder=True).build(parts, total_rounds=1, guidance=1.0, seed=0)
    assert (waits(parts), parts.prompts.kept) == ([False], None)
    parts.prompts(["a cat"])
    assert not folder.exists()


def test_small_text_encoders_are_simply_read(models, monkeypatch):
    monkeypatch.undo()
    parts = opened(models["sd15"])
    assert (waits(parts), parts.prompts.kept) == ([False], None)


def test_the_key_is_of_every_byte_and_of_how_it_is_read(models, tmp_path, monkeypatch):
    model = shutil.copytree(models["sd15"], tmp_path / "model")

    def key(dtype=torch.float32):
        return kept.key(folder_layout(model), dtype, CPU)

    first = key()
    assert first == key() == kept.key(folder_layout(models["sd15"]), torch.float32, CPU)  # wherever it lies
    found = {first, key(torch.bfloat16)}
    weights = model / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    found.add(key())
    (model / "tokenizer" / "tokenizer_config.json").write_text("{}")
    found.add(key())
    monkeypatch.setattr(kept, "machine", lambda _: ["another"])
    found.add(key())
    assert len(found) == 5
    (model / "unet" / "config.json").write_text("{}")
    assert key() in found


def said(seed=0):
    made = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True, False, True]])
    return Texts(torch.randn(1, 3, 4, generator=made).bfloat16(), torch.randn(1, 2, generator=made), mask)


def test_what_is_broken_or_anothers_is_told_and_made_anew(tmp_path):
    ours = Kept(tmp_path, "one")
    assert ours.read("a cat") is None
    ours.write("a cat", said())
    (path,) = tmp_path.iterdir()
    found, whole = ours.read("a cat"), path.read_bytes()
    assert found.tokens.dtype == torch.bfloat16
    assert all(torch.equal(getattr(found, name), getattr(said(), name)) for name in ("tokens", "pooled", "mask"))
    assert Kept(tmp_path, "other").read("a cat") is None
    for content in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-9], b"", b"no tensors"):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"this kept embedding is broken \(.+\), and is made anew"):
            assert ours.read("a cat") is None
    path.write_bytes(whole)
    path.rename(ours._path("a dog"))  # as by a hand that knows no better
    with pytest.warns(UserWarning, match="it is not what was written"):
        assert ours.read("a dog") is None


def test_two_may_write_at_once_and_no_more_is_held_than_may_be(tmp_path):
    ours = Kept(tmp_path, "one", capacity=2000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ours.write("a cat", said()), range(8)))
    assert [path.name for path in tmp_path.iterdir()] == [ours._path("a cat").name]
    size = ours._path("a cat").stat().st_size
    texts = [f"text {place}" for place in range(2000 // size + 2)]
    for text in texts:
        ours.write(text, said())
        ours.read("a cat")
    ours.trim()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    assert (ours.read("a cat") is None, ours.read(texts[0]) is None) == (False, True)


def test_a_disk_that_refuses_is_told_once(tmp_path):
    (tmp_path / "file").write_text("")
    ours = Kept(tmp_path / "file" / "texts", "one")
    with pytest.warns(UserWarning, match="embeddings of texts cannot be kept here"):
        ours.write("a cat", said())
    ours.write("a dog", said())
    assert ours.holds(["a cat", "a dog"]) == 0
    ours.trim()
