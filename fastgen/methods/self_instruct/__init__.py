"""Self-Instruct (Wang et al., ACL 2023): instructions from demonstrations, classification, instances.

`Plan` says what to ask next, judges answers and applies commits.
"""
