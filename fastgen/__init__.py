"""Self-Instruct (Wang et al., ACL 2023) as a high-throughput asynchronous batch generator on vLLM."""

__version__ = "0.1.0"
