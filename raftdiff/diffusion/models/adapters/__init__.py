"""What is added to a model: LoRAs merged into its weights, and textual inversions, whose tokens it is taught.

``loras.merge`` and ``embeddings.teach`` change a loaded model; ``lora_files`` reads what people publish.
"""
