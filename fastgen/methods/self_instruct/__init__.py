"""Self-Instruct (Wang et al., ACL 2023): instructions from demonstrations, classification, instances.

`fastgen.methods.self_instruct.method` declares it.
"""
