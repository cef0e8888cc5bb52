"""Causal language models of transformers, their prompts kept from one to the next: the adapter, alignment, prefill."""
