"""`hyperattention perplexity`: what replacing a model's attention costs in loss, and what it saves in time."""
