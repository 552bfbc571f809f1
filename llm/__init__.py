"""The language-model side: sampler, fine-tuners and losses for causal language models."""

if __name__ != "raftdiff.llm":
    raise ImportError("Import this package as raftdiff.llm: under the bare name 'llm' a second copy would be loaded.")
